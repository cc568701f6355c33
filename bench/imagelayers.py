"""The layers of an image in the engine, read as one stream: nothing is kept in memory, nothing is written.

Layers are named after the stages that the runtime stage copies from (`torch`,
`comfyui`, `profile`, …), and compared by the digest of their uncompressed tar,
which does not depend on how a store or a registry compresses them.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from imgbuild.engines.blobs import blob_folder, stored_blobs
from imgbuild.errors import DriftError, EngineError
from imgbuild.layerstream import Prefixed, plain
from imgbuild.plan import Plan, Source, make_plan
from imgbuild.render import Renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from imgbuild.matrix import Matrix
    from imgbuild.project import Project

CHUNK = 1 << 20
ZSTD_LEVEL = 3
"""What `imgbuild build --push` compresses with."""
_LARGEST_JSON = 8_000_000
_EXPORT_TIMEOUT = 900


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Layer:
    name: str
    digest: str
    """Of the uncompressed tar."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes of one layer."""

    unpacked: int
    zstd: int
    gzip: int | None = None


@dataclass(frozen=True, kw_only=True)
class LayeredImage:
    reference: str
    layers: tuple[Layer, ...]
    """From the bottom to the top."""
    plan: Plan


# --- naming ------------------------------------------------------------------------------------


def layered_image(client: Any, reference: str, project: Project, matrix: Matrix) -> LayeredImage:
    """An image with its layers named; EngineError when there is none, DriftError when it is another project's."""
    from docker.errors import ImageNotFound  # noqa: PLC0415  (slow to import)

    try:
        attrs = client.images.get(reference).attrs
    except ImageNotFound:
        raise EngineError(f"there is no image {reference}", hint="imgbuild build --target …") from None
    plan = plan_of(project, matrix, attrs["Config"]["Labels"] or {}, reference)
    created_by = [
        h["CreatedBy"] for h in reversed(client.images.get(reference).history()) if not _is_metadata(h)
    ]
    digests = attrs["RootFS"]["Layers"]
    stages = runtime_stages(Renderer(project.templates).context(plan)["Dockerfile"])
    names = layer_names(created_by, len(digests), stages, reference)
    layers = tuple(Layer(name=n, digest=d) for n, d in zip(names, digests, strict=True))
    return LayeredImage(reference=reference, layers=layers, plan=plan)


def plan_of(project: Project, matrix: Matrix, labels: dict[str, str], reference: str) -> Plan:
    """The plan an image was built from, out of its labels and the project as it is now."""
    target = matrix.targets.get(labels.get("imgbuild.target", ""))
    if target is None:
        raise DriftError(f"{reference} has no label imgbuild.target that this project knows")
    source = Source(
        version=labels["imgbuild.comfyui"],
        kind=cast("Any", labels["imgbuild.comfyui.source"]),
        git=matrix.comfyui.git,
        commit=None,
        identity=labels["imgbuild.comfyui.identity"],
    )
    return make_plan(project, matrix, target, source=source)


def _is_metadata(entry: dict[str, Any]) -> bool:
    """Whether a line of `docker history` made no layer: the engine tells it only by what the line says."""
    words = str(entry["CreatedBy"]).split()
    return not words or words[0] not in ("COPY", "ADD", "RUN", "WORKDIR")


def runtime_stages(dockerfile: str) -> list[str]:
    """The stages that the runtime stage copies from, in order."""
    runtime = dockerfile.rpartition(" AS runtime\n")[2]
    return [
        name.removeprefix("venv-") for name in re.findall(r"^COPY .*--from=(\S+) ", runtime, re.MULTILINE)
    ]


def layer_names(created_by: list[str], count: int, stages: list[str], reference: str) -> list[str]:
    """A name for each layer; whatever lies below the first copied stage is the base's."""
    copied = [text.startswith("COPY /o/ /") for text in created_by]
    if sum(copied) != len(stages) or len(created_by) != count:
        raise DriftError(
            f"{reference} has {sum(copied)} copied layers of {count}, and the templates give {len(stages)}",
            hint="build it again: it was made from other templates",
        )
    left = iter(stages)
    first = copied.index(True) if True in copied else count
    names = []
    for i, (ours, text) in enumerate(zip(copied, created_by, strict=True)):
        if ours:
            names.append(next(left))
        elif i < first:
            names.append("base" if first == 1 else f"base {i + 1}/{first}")
        else:
            names.append(text.split()[0].lower())
    return names


# --- reading -----------------------------------------------------------------------------------


def blobs(client: Any, reference: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Every blob of an image as (digest, bytes, stream): from the engine's disk, or as `docker image save` sends it.

    A stream must be read before the next blob is asked for, or is skipped.
    """
    root, digest = Path(str(client.info().get("DockerRootDir", ""))), str(client.images.get(reference).id)
    if folder := blob_folder(root, digest):
        yield from stored_blobs(folder, digest)
        return
    api = client.api
    before, api.timeout = (
        api.timeout,
        _EXPORT_TIMEOUT,
    )  # the first byte comes when the engine has looked at all
    try:
        source = _Chunks(client.api.get_image(reference, chunk_size=CHUNK))
        with tarfile.open(fileobj=cast("IO[bytes]", source), mode="r|", bufsize=CHUNK) as tar:
            for member in tar:
                if member.isfile() and member.name.startswith("blobs/sha256/"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield f"sha256:{member.name.rpartition('/')[2]}", member.size, content
    finally:
        api.timeout = before


def read_layers(
    client: Any,
    reference: str,
    use: Callable[[str, Readable], None],
    *,
    skip: Iterable[str] = (),
    document: Callable[[str, bytes], None] | None = None,
) -> dict[str, str]:
    """Call `use(blob, uncompressed stream)` for every layer, in one pass over the image.

    Returns blob → digest of the uncompressed tar, which is only known when all
    has gone by: an engine sends blobs in the order of their digests. Layers in `skip`
    (uncompressed, so that their blob has their digest) go by unread; `document`
    gets everything else: indexes, manifests, configurations, attestations.
    """
    skipped = set(skip)
    documents: dict[str, Any] = {}
    for blob, size, content in blobs(client, reference):
        if blob in skipped:
            continue
        head = content.read(4)
        whole = cast("IO[bytes]", Prefixed(head, content))
        if head.startswith(b"{") and size < _LARGEST_JSON:
            text = head + content.read()
            documents[blob] = json.loads(text)
            if document:
                document(blob, text)
            continue
        use(blob, plain(whole))
    found: dict[str, str] = {}
    for manifest in documents.values():
        config = documents.get((manifest.get("config") or {}).get("digest", ""))
        if config and "rootfs" in config:
            layers = [layer["digest"] for layer in manifest["layers"]]
            found.update(zip(layers, config["rootfs"]["diff_ids"], strict=False))  # an attestation has none
    return found


def measure(
    client: Any, image: LayeredImage, known: dict[str, Measured], *, with_gzip: bool = False
) -> dict[str, Measured]:
    """`known` with the sizes of all of an image's layers, by the digest of the uncompressed tar."""
    if all(layer.digest in known for layer in image.layers):
        return known
    found: dict[str, Measured] = {}

    def use(blob: str, plain: Readable) -> None:
        found[blob] = _measure_one(plain, with_gzip=with_gzip)

    names = read_layers(client, image.reference, use, skip=known)
    return {**known, **{names[blob]: measured for blob, measured in found.items()}}


def _measure_one(plain: Readable, *, with_gzip: bool) -> Measured:
    total = 0
    with Counter(["zstd", f"-{ZSTD_LEVEL}", "--stdout", "--quiet"]) as zstd, _maybe_gzip(with_gzip) as gz:
        while chunk := plain.read(CHUNK):
            total += len(chunk)
            zstd.write(chunk)
            gz.write(chunk)
    return Measured(unpacked=total, zstd=zstd.count, gzip=gz.count if with_gzip else None)


def _maybe_gzip(wanted: bool) -> Counter:
    return Counter(["gzip", "-6", "--stdout"] if wanted else None)


class Counter:
    """How many bytes a filter makes of what is written to it."""

    def __init__(self, argv: list[str] | None) -> None:
        self.argv = argv
        self.count = 0

    def __enter__(self) -> Counter:  # noqa: PYI034  (no subclass will come)
        if self.argv:
            try:
                self._child = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except FileNotFoundError:
                raise EngineError(
                    f"{self.argv[0]} is not installed", hint=f"apt-get install {self.argv[0]}"
                ) from None
            self._reader = threading.Thread(target=self._drain, daemon=True)
            self._reader.start()
        return self

    def _drain(self) -> None:
        assert self._child.stdout is not None
        while chunk := self._child.stdout.read(CHUNK):
            self.count += len(chunk)

    def write(self, chunk: bytes) -> None:
        if self.argv:
            assert self._child.stdin is not None
            self._child.stdin.write(chunk)

    def __exit__(self, *exc: object) -> None:
        if self.argv:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._reader.join()
            if self._child.wait() and exc[0] is None:
                raise EngineError(f"{self.argv[0]} ended with status {self._child.returncode}")


class _Chunks:
    """A file over an iterator of chunks, for tarfile."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.left = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        parts = []
        wanted = size
        while wanted:
            if not self.left:
                chunk = next(self.chunks, None)
                if chunk is None:
                    break
                self.left = memoryview(chunk)
            part = self.left[:wanted] if wanted > 0 else self.left
            self.left = self.left[len(part) :]
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
        return b"".join(parts)


def walk(
    client: Any, reference: str, visit: Callable[[str, tarfile.TarFile, tarfile.TarInfo], None]
) -> dict[str, str]:
    """Call `visit(blob, tar, member)` for every member of every layer; returns blob → layer's digest."""

    def use(blob: str, plain: Readable) -> None:
        with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|", bufsize=CHUNK) as tar:
            for member in tar:
                visit(blob, tar, member)

    return read_layers(client, reference, use)
