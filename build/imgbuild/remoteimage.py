"""An image in a registry, looked at without a pull: a few kilobytes are read, and no layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.errors import RegistryError, SelectionError, UnsoundError, nearest
from imgbuild.manifests import INDEXES, MANIFESTS, Descriptor, Document, ImageConfig, Platform, parse
from imgbuild.refusals import told
from imgbuild.registry import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imgbuild.reference import Reference
    from imgbuild.transport import Patience

_MACHINES = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}


@dataclass(frozen=True, kw_only=True)
class RemoteLayer:
    digest: str
    """Of what is moved: the compressed tar."""
    size: int
    """Bytes that are moved, compressed."""
    media_type: str
    diff_id: str
    """Digest of the uncompressed tar: equal where the content is, however it is compressed."""
    created_by: str
    """The line of the Dockerfile; empty where the image does not say."""


@dataclass(frozen=True, kw_only=True)
class RemoteImage:
    """One platform of an image, as its registry describes it."""

    reference: Reference
    """As it was asked for."""
    index_digest: str | None
    """What the tag points to, where that is an index; it changes with provenance."""
    digest: str
    """Of the platform's manifest: equal digests are equal images."""
    platform: str
    platforms: tuple[str, ...]
    """All that the index has."""
    config_digest: str
    config: ImageConfig
    layers: tuple[RemoteLayer, ...]
    annotations: Mapping[str, str]

    @property
    def labels(self) -> dict[str, str]:
        return self.config.labels

    @property
    def env(self) -> dict[str, str]:
        return self.config.env

    @property
    def size(self) -> int:
        """Bytes of all layers, compressed; one that is there twice is moved once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())

    @property
    def pinned(self) -> Reference:
        """The image by what never changes: the platform's digest."""
        return self.reference.at(self.digest)

    @property
    def top(self) -> Reference:
        """What the tag pointed to, by digest: the index, or the manifest where there is none."""
        return self.reference.at(self.index_digest or self.digest)


def find(
    reference: Reference,
    platform: str | None = None,
    *,
    env: Mapping[str, str],
    patience: Patience | None = None,
    say: Callable[[str], None] | None = None,
    again: str | None = None,
) -> RemoteImage:
    """Look at an image.

    Without a platform ('linux/arm64'): the only one there is, else this machine's. SelectionError where the image has
    not the platform, RegistryError for whatever goes wrong on the way; `again` is the command that its hint ends with.
    """
    with (
        told(str(reference), host=reference.host, again=again),
        Repository.of(reference, env=env, patience=patience, say=say) as repository,
    ):
        return look(repository, reference, platform)


def look(repository: Repository, reference: Reference, platform: str | None = None) -> RemoteImage:
    """As `find`, by way of a repository that is open; errors are not told yet, but for one: no such image."""
    document = repository.manifest(reference.name)
    if document is None:
        raise _absent(repository, reference)
    platforms: tuple[str, ...] = ()
    index_digest = None
    if document.media_type in INDEXES:
        index_digest = document.digest
        images = {str(m.platform): m for m in document.index().images if m.platform is not None}
        platforms = tuple(sorted(images))
        document = _manifest(repository, reference, images, platform)
    if document.media_type not in MANIFESTS:
        raise UnsoundError(f"a document of the kind {document.media_type!r}, which is no image")
    manifest = document.manifest()
    config = parse(ImageConfig, repository.read(manifest.config), "configuration")
    if platform is not None and config.platform != _spelt(platform):
        raise _no_platform(reference, platform, (config.platform,))
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise UnsoundError(f"{document.digest} is no image: its configuration does not name its layers")
    steps = [step.created_by for step in config.history if not step.empty_layer]
    steps += [""] * (len(manifest.layers) - len(steps))
    return RemoteImage(
        reference=reference,
        index_digest=index_digest,
        digest=document.digest,
        platform=config.platform,
        platforms=platforms or (config.platform,),
        config_digest=manifest.config.digest,
        config=config,
        layers=tuple(
            RemoteLayer(
                digest=layer.digest,
                size=layer.size,
                media_type=layer.media_type,
                diff_id=diff_id,
                created_by=step,
            )
            for layer, diff_id, step in zip(manifest.layers, config.rootfs.diff_ids, steps, strict=False)
        ),
        annotations=manifest.annotations,
    )


def machine_platform() -> str:
    """This machine's platform in OCI's spelling."""
    return _MACHINES.get(os.uname().machine, f"linux/{os.uname().machine}")


def _manifest(
    repository: Repository, reference: Reference, images: Mapping[str, Descriptor], platform: str | None
) -> Document:
    wanted = _spelt(platform) if platform else machine_platform()
    chosen = images.get(wanted)
    if chosen is None and platform is None and len(images) == 1:
        chosen = next(iter(images.values()))
    if chosen is None:
        raise _no_platform(reference, wanted, sorted(images))
    document = repository.manifest(chosen.digest)
    if document is None:
        raise UnsoundError(f"the manifest {chosen.digest} of its index is missing")
    return document


def _spelt(platform: str) -> str:
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    return str(Platform(os=system, architecture=architecture, variant=variant or None))


def _no_platform(reference: Reference, wanted: str, there: Iterable[str]) -> SelectionError:
    names = ", ".join(there) or "none"
    return SelectionError(
        f"{reference} has no {wanted}; its platforms are: {names}", hint="--platform names another"
    )


def _absent(repository: Repository, reference: Reference) -> RegistryError:
    tags = repository.tags()
    near = nearest(reference.name, tags) if reference.digest is None else None
    if not tags:
        hint = "nothing at all is published under that path; see that it is spelt as it is there"
    elif near:
        hint = f"did you mean {reference.tagged(near)}?"
    else:
        hint = f"there are: {', '.join(tags[:12])}{' …' if len(tags) > 12 else ''}"  # noqa: PLR2004
    return RegistryError(f"{reference}: there is no such image", hint=hint)
