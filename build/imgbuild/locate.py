"""An image by what a person calls it: a file of `imgbuild save`, a registry's REGISTRY/PATH:TAG, else the engine's tag."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from imgbuild import archive, contents
from imgbuild.engines.store import store
from imgbuild.errors import ConfigError, EngineError, SelectionError, UnsoundError
from imgbuild.imageview import Attachment, View, of_config, of_remote
from imgbuild.layerstream import plain
from imgbuild.manifests import Descriptor
from imgbuild.reference import Reference, is_host
from imgbuild.refusals import told
from imgbuild.registry import Repository
from imgbuild.remoteimage import find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgbuild.contents import Contents
    from imgbuild.engines import Engine
    from imgbuild.manifests import Manifest
    from imgbuild.remoteimage import RemoteImage

    Say = Callable[[str], None]
    Progress = Callable[[int], None]

_SBOM_TYPES = ("application/vnd.cyclonedx+json", "application/spdx+json")
_SIGNATURES = ("application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.dev.sigstore.bundle")
_LARGEST_SBOM = 64_000_000  # bytes
_ARCHIVE = (".tar.zst", ".tar", ".tzst")


@dataclass(frozen=True, kw_only=True)
class Located:
    """An image that was found, and where its packages can be read."""

    view: View
    engine: Engine | None = None
    remote: RemoteImage | None = None
    checked: archive.Checked | None = None
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Finder:
    """Where to look. `groups` are the matrix's layer groups, for the layers' names."""

    env: Mapping[str, str]
    engine: Callable[[], Engine]
    groups: Sequence[str]
    say: Say
    meter: Callable[[str, int], Any]
    """A meter of bytes, as a context with `add` and `at`: (what, total)."""

    def find(self, reference: str, platform: str | None = None) -> Located:
        """SelectionError when there is no such image; RegistryError when its registry does not answer."""
        if reference.startswith((".", "/")) or reference.endswith(_ARCHIVE):
            if not Path(reference).is_file():
                raise ConfigError(f"there is no file {reference}", hint="imgbuild save writes one")
            return self._archive(Path(reference))
        if is_remote(reference):
            return self._remote(Reference.parse(reference), platform)
        engine = self.engine()
        if not engine.alive():
            raise EngineError(f"no {engine.name} engine answers", hint="imgbuild doctor --fix")
        view = store(engine).view(reference, self.groups)
        if view is None:
            hint = "imgbuild build makes one; one in a registry is REGISTRY/PATH:TAG, one of imgbuild save its file"
            raise SelectionError(f"{engine.name} has no image {reference}", hint=hint)
        return Located(view=view, engine=engine)

    def contents(self, located: Located, *, deep: bool = False) -> Contents | str:
        """Its packages, or why they are not known. `deep` opens every layer, whatever lists there are."""
        if located.remote is not None:
            return self._of_registry(located, located.remote, deep=deep)
        if located.checked is not None and located.path is not None:
            sbom = located.checked.sbom
            if sbom is not None and not deep:
                try:
                    return contents.of_sbom(sbom)
                except UnsoundError as e:
                    return f"{located.path}: {e}; --deep reads its layers"
            return self._of_archive(located.path, located.checked)
        assert located.engine is not None
        return self._of_engine(located.engine, located.view, deep=deep)

    # Registry

    def _remote(self, reference: Reference, platform: str | None) -> Located:
        image = find(reference, platform, env=self.env, say=self.say)
        with (
            told(str(reference), host=reference.host),
            Repository.of(reference, env=self.env, say=self.say) as repository,
        ):
            found = attachments(repository, image)
        return Located(view=of_remote(image, groups=self.groups, attachments=found), remote=image)

    def _of_registry(self, located: Located, image: RemoteImage, *, deep: bool) -> Contents | str:
        reference = image.reference
        sboms = [a for a in located.view.attachments if a.kind == "SBOM"]
        if not sboms and not deep:
            return f"{reference} has no SBOM; --deep downloads its layers and looks ({image.size} bytes)"
        with (
            told(str(reference), host=reference.host),
            Repository.of(reference, env=self.env, say=self.say) as repository,
        ):
            if sboms and not deep:
                return contents.of_sbom(_sbom(repository, sboms[0].digest))
            scans = []
            with self.meter(f"reading the layers of {reference}", image.size) as meter:
                for layer in image.layers:
                    blob = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
                    with tempfile.TemporaryFile() as file:
                        repository.download(blob, file, meter.add)
                        file.seek(0)
                        scans.append(contents.scan(plain(cast("IO[bytes]", file))))
        return contents.merged(scans, "its layers")

    # Engine

    def _of_engine(self, engine: Engine, view: View, *, deep: bool) -> Contents:
        if not deep and view.ours and engine.name == "docker":
            listed = contents.of_lists(lambda paths: store(engine).files(view.reference, paths))
            if listed is not None:
                return listed
        with (
            self.meter(f"reading the files of {view.reference}", view.unpacked or 0) as meter,
            engine.export(view.reference) as stream,
        ):
            found = contents.scan(stream, meter.add)
        return contents.merged([found], "all of its files")

    # Archive

    def _archive(self, path: Path) -> Located:
        with self.meter(f"checking {path.name}", path.stat().st_size) as meter:
            checked = archive.check(path, meter.at)
        try:
            digest, manifest, config = checked.image()
        except UnsoundError as e:
            raise SelectionError(f"{path}: {e}") from None
        found = []
        if checked.sbom is not None:
            found.append(Attachment(kind="SBOM", digest="", artifact_type=""))
        if checked.attested:
            found.append(Attachment(kind="provenance", digest="", artifact_type=""))
        view = of_config(
            config,
            reference=str(path),
            place="archive",
            digest=digest,
            groups=self.groups,
            stored=[layer.size for layer in manifest.layers],
            unpacked=_as_stored(manifest, config.rootfs.diff_ids),
            tags=(checked.listing.reference,),
            attachments=found,
        )
        return Located(view=view, checked=checked, path=path)

    def _of_archive(self, path: Path, checked: archive.Checked) -> Contents:
        _, manifest, _ = checked.image()
        scans: dict[str, contents.Scan] = {}
        wanted = {layer.digest for layer in manifest.layers}
        with (
            self.meter(f"reading the layers of {path.name}", path.stat().st_size) as meter,
            archive.opened(path, meter.at) as tar,
        ):
            for member in tar:
                digest = f"sha256:{member.name.rpartition('/')[2]}"
                content = tar.extractfile(member) if digest in wanted and member.isreg() else None
                if content is not None:
                    scans[digest] = contents.scan(plain(content))
        return contents.merged([scans[layer.digest] for layer in manifest.layers], "its layers")


def is_remote(text: str) -> bool:
    """Whether a text names an image in a registry: what its first part is, decides."""
    host, slash, _ = text.partition("/")
    return bool(slash) and is_host(host) and host != "localhost"  # so Podman calls its own


def attachments(repository: Repository, image: RemoteImage) -> tuple[Attachment, ...]:
    """SBOMs, signatures and provenance of an image; RefusedError and the like as the repository raises them."""
    found: dict[str, Attachment] = {}
    subjects = dict.fromkeys(d for d in (image.digest, image.index_digest) if d)
    for subject in subjects:
        for descriptor in repository.referrers(subject):
            kind = descriptor.artifact_type or descriptor.media_type
            found[descriptor.digest] = Attachment(
                kind=_kind(kind), digest=descriptor.digest, artifact_type=kind
            )
        if (signature := repository.manifest(f"{subject.replace(':', '-')}.sig")) is not None:
            kind = _SIGNATURES[0]
            found[signature.digest] = Attachment(
                kind="signature", digest=signature.digest, artifact_type=kind
            )
    if image.index_digest and (top := repository.manifest(image.index_digest)) is not None:
        for descriptor in top.index().manifests:
            if descriptor.is_attestation:
                found[descriptor.digest] = Attachment(
                    kind="provenance", digest=descriptor.digest, artifact_type=descriptor.media_type
                )
    return tuple(found.values())


def _kind(artifact_type: str) -> str:
    if artifact_type.startswith(_SBOM_TYPES):
        return "SBOM"
    if artifact_type.startswith(_SIGNATURES) or "signature" in artifact_type:
        return "signature"
    return "provenance" if "in-toto" in artifact_type or "provenance" in artifact_type else artifact_type


def _sbom(repository: Repository, digest: str) -> bytes:
    document = repository.manifest(digest)
    layers = document.manifest().layers if document is not None else ()
    if not layers:
        raise UnsoundError("its SBOM is missing")
    if layers[0].size > _LARGEST_SBOM:
        raise UnsoundError(f"an SBOM of {layers[0].size} bytes")
    buffer = io.BytesIO()
    repository.download(layers[0], buffer)
    return buffer.getvalue()


def _as_stored(manifest: Manifest, diffs: Sequence[str]) -> dict[str, int]:
    """The unpacked size of layers whose blob is not compressed."""
    pairs = zip(manifest.layers, diffs, strict=False)
    return {diff: layer.size for layer, diff in pairs if layer.digest == diff}


def sized(view: View, others: Sequence[View]) -> View:
    """The view, with unpacked sizes of layers that another one knows."""
    known = {x.diff: x.unpacked for v in others for x in v.layers if x.unpacked is not None}
    return replace(
        view,
        layers=tuple(
            x if x.unpacked is not None else replace(x, unpacked=known.get(x.diff)) for x in view.layers
        ),
    )
