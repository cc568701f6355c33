"""The wheelhouse of a registry: `REGISTRY/PATH/wheelhouse/<kernel>:<key>`, one OCI artifact an entry.

A manifest with one layer, the wheel; its configuration is the entry's
entry.json, its annotations are what a person asks first. Blobs go up before the
manifest, so a reader finds a whole artifact or none.

The distribution API is spoken with requests, and credentials are found by
docker's own package. The oras client for Python was tried (0.2.43): it waits
131 s before it says that nobody answers or that a login is missing, cannot log
in to a registry with plain passwords, and goes on with a token for reading when
it is time to write.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Literal

import requests
from pydantic import Field

from imgbuild.errors import ConfigError, RegistryError, UnsoundError, VerificationError
from imgbuild.manifests import MANIFEST, Descriptor, Document, Manifest, canonical, digest_of, parse
from imgbuild.reference import is_host, is_path
from imgbuild.refusals import RefusedError, remedy, why
from imgbuild.registry import Repository
from imgbuild.transport import AT_ONCE
from imgbuild.wheelhouse import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgbuild.wheelhouse import Entry, Wheelhouse

CONFIG_TYPE = "application/vnd.imgbuild.kernel.config.v1+json"
WHEEL_TYPE = "application/vnd.imgbuild.kernel.wheel.v1+zip"
_TITLE = "org.opencontainers.image.title"
_ESSENTIAL = ("source", "architectures", "platform", "python", "torch", "cuda", "gcc", "flags")
"""Components worth an annotation; the configuration has all of them."""


class Artifacts:
    """The kernels that a registry holds.

    `where` is REGISTRY/PATH. A registry on loopback is spoken to by plain HTTP, every other by HTTPS. `env` says where
    docker's config.json, certificates and proxies are. Every failure is a RegistryError that names the artifact.
    """

    def __init__(self, where: str, *, env: Mapping[str, str]) -> None:
        host, _, path = where.rstrip("/").partition("/")
        if not is_host(host) or (path and not is_path(path)):
            raise ConfigError(
                f"{where!r} is no place in a registry",
                hint="write it as REGISTRY/PATH, the path in small letters, without https://",
            )
        self.where = f"{host}/{path}" if path else host
        self._host = host
        self._path = f"{path}/wheelhouse" if path else "wheelhouse"
        self._env = env
        self._absent: set[tuple[str, str]] = set()
        self.down = False
        """Whether it did not answer, or refused: nobody need ask again."""

    def name(self, kernel: str, key: str) -> str:
        return f"{self._host}/{self._path}/{kernel}:{key}"

    def exists(self, kernel: str, key: str) -> bool:
        with self._repository("pull", kernel, key) as repository:
            return repository.has_manifest(key)

    def push(self, entry: Entry, *, replace: bool = True) -> str | None:
        """Store an entry; return its manifest's digest. Equal entries have equal digests.

        Where the key is taken by another build, its tag moves to this one; without `replace` nothing is sent then,
        and the answer is None.
        """
        config = canonical(entry.record.model_dump(mode="json"))
        manifest = Document(media_type=MANIFEST, raw=_manifest(entry, config).raw())
        with self._repository("push", entry.kernel, entry.key) as repository:
            if not replace and repository.has_manifest(entry.key):
                return None
            with entry.wheel.open("rb") as wheel:
                repository.upload(f"sha256:{entry.sha256}", wheel)
            repository.upload(digest_of(config), config)
            repository.put_manifest(entry.key, manifest)
        self._absent.discard((entry.kernel, entry.key))
        return manifest.digest

    def pull(
        self, kernel: str, key: str, store: Wheelhouse, *, distribution: str | None = None
    ) -> Entry | None:
        """The store's entry of a key, brought from the registry where the store has none; None when neither has it.

        `distribution` is the name the wheel must have, where it is not the recorded one. DiskError when the disk is
        full; whatever goes wrong, the store is as it was.
        """
        if there := store.get(kernel, key, distribution=distribution):
            return there
        if (kernel, key) in self._absent:
            return None
        with self._repository("pull", kernel, key) as repository, store.work_folder() as work:
            document = repository.manifest(key)
            if document is None:
                self._absent.add((kernel, key))
                return None
            manifest = parse(_Stored, document.raw, "manifest")
            record = Record.parse(repository.read(manifest.config))
            layer = manifest.layers[0]
            if (record.kernel, record.key) != (kernel, key):
                raise UnsoundError(f"it holds {record.kernel} {record.key}")
            if (f"sha256:{record.sha256}", record.size) != (layer.digest, layer.size):
                raise UnsoundError("its layer is not the wheel that its configuration names")
            wheel = work / record.wheel
            with wheel.open("xb") as file:
                repository.download(layer, file)
            try:
                return store.put(
                    kernel,
                    record.version,
                    key,
                    wheel,
                    components=record.components,
                    inventory=record.inventory,
                    seconds=record.seconds,
                    peak_bytes=record.peak_bytes,
                    distribution=distribution or record.distribution,
                    made=record.made,
                )
            except VerificationError as e:
                raise UnsoundError(e.message) from None

    @contextlib.contextmanager
    def _repository(self, verb: Literal["pull", "push"], kernel: str, key: str) -> Iterator[Repository]:
        """A connection; whatever fails in the body is told as one RegistryError."""
        name = self.name(kernel, key)
        again = f"imgbuild wheels {verb} --wheelhouse {self.where} --kernel {kernel}"
        again += f" {key}" if verb == "push" else " --all"
        # At once: a kernel can also be compiled, and who waits for that should hear soon that it must be.
        repository = Repository(
            self._host,
            f"{self._path}/{kernel}",
            actions="pull,push" if verb == "push" else "pull",
            env=self._env,
            patience=AT_ONCE,
        )
        try:
            yield repository
        except RefusedError as e:
            login = self.down = e.wants_login
            raise RegistryError(
                f"{name}: {verb} refused: {e}",
                hint=f"docker login {self._host}, then: {again}" if login else again,
            ) from None
        except UnsoundError as e:
            raise RegistryError(
                f"{name} is corrupt: {e}",
                hint=f"compile it anew and push that over it: imgbuild wheels build --kernel {kernel}, "
                f"then: imgbuild wheels push --wheelhouse {self.where} --kernel {kernel} --force {key}",
            ) from None
        except requests.RequestException as e:
            self.down = True
            raise RegistryError(
                f"{name}: {verb} failed: {self._host} {why(e)}", hint=remedy(e, again)
            ) from None
        finally:
            repository.close()


class _Stored(Manifest):
    """Of what imgbuild stores: one wheel and its record."""

    media_type: Annotated[Literal["application/vnd.oci.image.manifest.v1+json"], Field(alias="mediaType")] = (
        "application/vnd.oci.image.manifest.v1+json"
    )
    artifact_type: Annotated[Literal["application/vnd.imgbuild.kernel.v1"], Field(alias="artifactType")] = (
        "application/vnd.imgbuild.kernel.v1"
    )
    layers: tuple[Descriptor]


def _manifest(entry: Entry, config: bytes) -> _Stored:
    components = {
        f"imgbuild.component.{name}": entry.components[name]
        for name in _ESSENTIAL
        if name in entry.components
    }
    return _Stored(
        config=Descriptor(media_type=CONFIG_TYPE, digest=digest_of(config), size=len(config)),
        layers=(
            Descriptor(
                media_type=WHEEL_TYPE,
                digest=f"sha256:{entry.sha256}",
                size=entry.size,
                annotations={_TITLE: entry.wheel.name},
            ),
        ),
        annotations={
            _TITLE: f"{entry.kernel} {entry.version}",
            "org.opencontainers.image.created": entry.made,
            "org.opencontainers.image.version": entry.version,
            "imgbuild.kernel": entry.kernel,
            "imgbuild.key": entry.key,
            "imgbuild.platform": entry.platform,
            "imgbuild.code": " ".join(entry.arches) or "none",
            "imgbuild.build.seconds": f"{entry.seconds:.0f}",
            "imgbuild.build.peak-bytes": str(entry.peak_bytes),
            **components,
        },
    )
