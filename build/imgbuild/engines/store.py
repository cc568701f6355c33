"""What an engine keeps: look into its images, bring some in, give some out. Docker by its SDK, Podman by its command."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from imgbuild import proc
from imgbuild.engines.docker import Docker
from imgbuild.engines.podman import Podman
from imgbuild.errors import DiskError, EngineError, ImgbuildError, RegistryError
from imgbuild.imageview import View, of_config
from imgbuild.manifests import ImageConfig
from imgbuild.report import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from imgbuild.engines import Engine
    from imgbuild.reference import Reference

_CHUNK = 1 << 20
_FIRST_BYTE = 900
"""Seconds: an engine looks at the whole image before it gives out its first byte."""
_MAKES_LAYERS = ("COPY", "ADD", "RUN", "WORKDIR")
_SMALL = 16_000_000
Chain = tuple[str, ...]


class Store(Protocol):
    """The images of one engine."""

    @property
    def engine(self) -> Engine: ...

    def view(self, tag: str, groups: Sequence[str]) -> View | None:
        """None when there is no such image."""

    def chains(self) -> frozenset[Chain]:
        """Of every image its layers' digests, uncompressed, and every beginning of that row.

        What lies at the same height on the same layers is not fetched a second time.
        """

    def files(self, tag: str, paths: Iterable[str]) -> dict[str, bytes | None]:
        """Small files of an image, without starting it: None for what is not there. EngineError where it cannot."""

    def pull(self, reference: Reference, platform: str, *, plain: bool = False) -> None:
        """Progress goes to stderr. RegistryError, or DiskError; `plain`: the registry speaks no TLS."""

    def tag(self, source: str, name: str) -> None: ...

    def save(self, tag: str) -> Any:
        """A context with a tar stream: an OCI layout, for Docker with the manifest.json that it adds."""

    def load(self, pieces: Iterable[bytes]) -> str | None:
        """Take the same tar in; what the engine calls the image, where it says so."""


def store(engine: Engine) -> Store:
    if isinstance(engine, Podman):
        return PodmanStore(engine)
    if isinstance(engine, Docker):
        return DockerStore(engine)
    raise EngineError(f"{engine.name} keeps no images that can be looked at")


def check_room(kept: Store, need: int, what: str) -> None:
    """DiskError when `need` bytes are more than is free where the engine keeps images; `what` begins the message."""
    root = kept.engine.data_root()
    if root is None:
        return
    free = shutil.disk_usage(root).free
    if free < need:
        raise DiskError(
            f"{what} about {human(need)} in {root}, and {human(free)} are free",
            hint="imgbuild df shows what takes it, imgbuild prune frees it",
        )


class DockerStore:
    def __init__(self, engine: Docker) -> None:
        self.engine = engine

    def view(self, tag: str, groups: Sequence[str]) -> View | None:
        from docker.errors import DockerException  # noqa: PLC0415

        image = self._image(tag)
        if image is None:
            return None
        attrs = image.attrs
        steps: list[Any] = []
        with suppress(DockerException):  # an image of which blobs are missing has none
            steps = list(reversed(image.history()))
        diffs = (attrs.get("RootFS") or {}).get("Layers") or []
        made = [s for s in steps if _makes_layer(str(s["CreatedBy"]), int(s["Size"]))]
        config = _config(attrs, diffs, [str(s["CreatedBy"]) for s in made])
        sizes = [int(s["Size"]) for s in made]
        known = dict(zip(diffs, sizes, strict=True)) if len(diffs) == len(sizes) else {}
        return of_config(
            config,
            reference=tag,
            place="docker",
            digest=str(image.id),
            groups=groups,
            stored=[None] * len(diffs),
            unpacked=known,
            tags=attrs.get("RepoTags") or (),
        )

    def chains(self) -> frozenset[Chain]:
        from docker.errors import DockerException  # noqa: PLC0415

        api = self.engine.client.api
        found: set[Chain] = set()
        for listed in api.images():
            with suppress(DockerException):  # gone meanwhile
                attrs = api.inspect_image(listed["Id"])
                found |= _beginnings((attrs.get("RootFS") or {}).get("Layers") or ())
        return frozenset(found)

    def files(self, tag: str, paths: Iterable[str]) -> dict[str, bytes | None]:
        from docker.errors import DockerException, NotFound  # noqa: PLC0415  (slow to import)

        image = self.engine.find(tag)
        if image is None:
            raise EngineError(f"Docker has no image {tag}")
        client = self.engine.client
        found: dict[str, bytes | None] = {}
        try:
            container = client.containers.create(tag, command=["none"], platform=image.platform)
        except (DockerException, OSError) as e:
            raise EngineError(f"Docker cannot make a container of {tag}: {_first(str(e))}") from None
        try:
            for path in paths:
                try:
                    stream, status = container.get_archive(path, chunk_size=_CHUNK)
                except NotFound:
                    found[path] = None
                    continue
                found[path] = _single(stream) if int(status["size"]) <= _SMALL else None
        except (DockerException, OSError) as e:
            raise EngineError(f"Docker stopped while it gave out files of {tag}: {_first(str(e))}") from None
        finally:
            with suppress(DockerException, OSError):
                container.remove(v=True, force=True)
        return found

    def pull(self, reference: Reference, platform: str, *, plain: bool = False) -> None:  # noqa: ARG002
        _pull(["docker", "pull", "--platform", platform, str(reference)], reference, self.engine.env)

    def tag(self, source: str, name: str) -> None:
        from docker.errors import DockerException  # noqa: PLC0415

        repository, _, tag = name.rpartition(":")
        try:
            self.engine.client.images.get(source).tag(repository, tag)
        except DockerException as e:
            raise EngineError(f"Docker cannot tag {source} as {name}: {_first(str(e))}") from None

    @contextmanager
    def save(self, tag: str) -> Iterator[IO[bytes]]:
        from docker.errors import DockerException  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        api = self.engine.client.api
        before, api.timeout = api.timeout, _FIRST_BYTE
        try:
            with io.BufferedReader(Pieces(api.get_image(tag, chunk_size=_CHUNK)), _CHUNK) as stream:
                yield cast("IO[bytes]", stream)
        except (DockerException, RequestException) as e:
            raise EngineError(f"Docker stopped while it gave out {tag}: {_first(str(e))}") from None
        finally:
            api.timeout = before

    def load(self, pieces: Iterable[bytes]) -> str | None:
        from docker.errors import DockerException  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        api = self.engine.client.api
        before, api.timeout = api.timeout, _FIRST_BYTE
        said = ""
        try:
            for line in api.load_image(iter(pieces)):
                if error := line.get("error"):
                    raise _trouble(str(error), "Docker cannot take the image in")
                said += str(line.get("stream") or line.get("status") or "")
        except (DockerException, RequestException) as e:
            raise _trouble(str(e), "Docker cannot take the image in") from None
        finally:
            api.timeout = before
        return _loaded(said)

    def _image(self, tag: str) -> Any:
        from docker.errors import DockerException, NotFound  # noqa: PLC0415

        try:
            return self.engine.client.images.get(tag)
        except NotFound:
            return None
        except DockerException as e:
            raise EngineError(f"Docker cannot be asked for {tag}: {_first(str(e))}") from None


class PodmanStore:
    def __init__(self, engine: Podman) -> None:
        self.engine = engine

    def _podman(self, *words: str) -> list[str]:
        return [*self.engine.command, *words]

    def view(self, tag: str, groups: Sequence[str]) -> View | None:
        done = proc.run(self._podman("image", "inspect", tag), env=self.engine.env, check=False, timeout=60)
        if done.returncode:
            return None
        attrs: Any = json.loads(done.stdout)[0]
        diffs = (attrs.get("RootFS") or {}).get("Layers") or []
        steps = [str(s.get("created_by", "")) for s in attrs.get("History") or () if not s.get("empty_layer")]
        config = _config({**attrs, "Healthcheck": attrs.get("Healthcheck")}, diffs, steps)
        return of_config(
            config,
            reference=tag,
            place="podman",
            digest=f"sha256:{attrs['Id']}",
            groups=groups,
            stored=[None] * len(diffs),
            tags=attrs.get("RepoTags") or (),
        )

    def chains(self) -> frozenset[Chain]:
        listed = proc.run(self._podman("images", "--quiet", "--no-trunc"), env=self.engine.env, timeout=60)
        names = sorted({line.removeprefix("sha256:") for line in listed.stdout.split()})
        if not names:
            return frozenset()
        done = proc.run(self._podman("image", "inspect", *names), env=self.engine.env, timeout=120)
        found: set[Chain] = set()
        for attrs in json.loads(done.stdout):
            found |= _beginnings((attrs.get("RootFS") or {}).get("Layers") or ())
        return frozenset(found)

    def files(self, tag: str, paths: Iterable[str]) -> dict[str, bytes | None]:  # noqa: ARG002
        raise EngineError("Podman gives out whole images only")

    def pull(self, reference: Reference, platform: str, *, plain: bool = False) -> None:
        words = self._podman("pull", "--platform", platform, *(["--tls-verify=false"] if plain else []))
        _pull([*words, str(reference)], reference, self.engine.env)

    def tag(self, source: str, name: str) -> None:
        proc.run(self._podman("tag", source, name), env=self.engine.env, timeout=60)

    @contextmanager
    def save(self, tag: str) -> Iterator[IO[bytes]]:
        try:
            with proc.reading(
                self._podman("save", "--quiet", "--format", "oci-archive", tag), env=self.engine.env
            ) as stream:
                yield stream
        except proc.ProcError as e:
            raise EngineError(f"Podman stopped while it gave out {tag}: {_last(e.output)}") from None

    def load(self, pieces: Iterable[bytes]) -> str | None:
        try:
            done = proc.feed(self._podman("load", "--quiet"), pieces, env=self.engine.env)
        except proc.ProcError as e:
            raise _trouble(_last(e.output), "Podman cannot take the image in") from None
        return _loaded(done.stdout)


class Pieces(io.RawIOBase):
    """A file made of pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _config(attrs: Mapping[str, Any], diffs: Sequence[str], steps: Sequence[str]) -> ImageConfig:
    """What `inspect` says, as the OCI configuration that it came from."""
    running = {k: v for k, v in (attrs.get("Config") or {}).items() if v is not None}
    if attrs.get("Healthcheck"):
        running["Healthcheck"] = attrs["Healthcheck"]
    return ImageConfig.model_validate(
        {
            "architecture": attrs["Architecture"],
            "os": attrs["Os"],
            "variant": attrs.get("Variant") or None,
            "created": attrs.get("Created"),
            "config": running,
            "rootfs": {"type": "layers", "diff_ids": list(diffs)},
            "history": [{"created_by": s} for s in steps] if len(steps) == len(diffs) else [],
        }
    )


def _makes_layer(created_by: str, size: int) -> bool:
    """Whether a line of `docker history` made a layer: the engine tells it only by what the line says."""
    words = created_by.split()
    if created_by.startswith("/bin/sh -c"):  # the classic builder: metadata is a nop
        return "#(nop)" not in created_by or any(w in _MAKES_LAYERS for w in words[3:4])
    return size > 0 or (bool(words) and words[0] in _MAKES_LAYERS)


def _beginnings(diffs: Iterable[str]) -> set[Chain]:
    row = tuple(diffs)
    return {row[: i + 1] for i in range(len(row))}


def _single(stream: Iterable[bytes]) -> bytes | None:
    """The one file in a small tar."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                return file.read()
    return None


_DAMAGED = ("unexpected commit digest", "failed precondition")
"""What containerd says of a blob that is not what its digest says. It keeps such a blob as one that came halfway, and
may stumble over it once more before it begins anew."""
_ATTEMPTS = 3


def _pull(argv: Sequence[str], reference: Reference, env: Mapping[str, str]) -> None:
    for _ in range(_ATTEMPTS):
        with tempfile.TemporaryFile() as log:
            status = proc.stream(argv, log=log, env=env)
            if not status:
                return
            log.seek(0)
            text = log.read().decode(errors="replace")
        if not any(words in text for words in _DAMAGED):
            break
    said = _last(text)
    if "no space left" in text.lower():
        raise DiskError(
            f"the disk became full while {argv[0]} pulled {reference}", hint="imgbuild df; imgbuild prune"
        )
    if "x509" in text or "certificate" in text:
        raise RegistryError(
            f"{argv[0]} does not trust {reference.host}: {said}",
            hint="the engine has certificates of its own: put the authority's into "
            f"/etc/{'containers' if argv[0] == 'podman' else 'docker'}/certs.d/{reference.host}/ca.crt",
        )
    if any(w in text.lower() for w in ("unauthorized", "authentication required", "denied")):
        raise RegistryError(
            f"{argv[0]} may not pull {reference}: {said}", hint=f"{argv[0]} login {reference.host}"
        )
    if "server gave HTTP response to HTTPS client" in text:
        raise RegistryError(
            f"{argv[0]} asks {reference.host} by HTTPS, and it speaks plain HTTP",
            hint=f"serve it by TLS, or name it in the engine's insecure-registries: {reference.host}",
        )
    raise RegistryError(
        f"{argv[0]} could not pull {reference}: {said}",
        hint="what came is kept, and the same command goes on from there",
    )


def _loaded(said: str) -> str | None:
    found = re.search(r"Loaded image(?:\(s\)| ID)?: *(\S+)", said)
    return found[1].rstrip(",") if found else None


def _trouble(said: str, what: str) -> ImgbuildError:
    if "no space left" in said.lower():
        return DiskError(f"{what}: the disk is full", hint="imgbuild df shows what takes it")
    return EngineError(f"{what}: {_first(said)}")


def _first(text: str) -> str:
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "it says nothing")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:400] if lines else "it says nothing"
