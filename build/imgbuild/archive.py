"""One file that carries an image to a machine without network: an OCI layout in a tar, compressed with zstd.

What lies in it is what the engine gave out, then one more member, LIST: which
blobs there are, how large they are, and of what image. It comes last, so a
file that was cut off lacks it. Every blob is named by its digest, and nothing
reaches an engine before all of them were found to be what their names say.
`docker load` reads the file too: it knows zstd, and leaves LIST aside.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from imgbuild.errors import ConfigError, EngineError, UnsoundError, VerificationError, first_mistake
from imgbuild.layerstream import TAR_END, Tail
from imgbuild.manifests import (
    INDEXES,
    MANIFESTS,
    Descriptor,
    Document,
    ImageConfig,
    Index,
    Manifest,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIST = "imgbuild-archive.json"
SBOM_NAME = "imgbuild-sbom.json"
LEVEL = 3
"""Of zstd, as for a registry."""
_CHUNK = 1 << 20
_SMALL = 16_000_000
_BLOBS = "blobs/sha256/"
_MAGIC = b"\x28\xb5\x2f\xfd"


class Listing(BaseModel):
    """What LIST says. Sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = 1
    reference: str
    """The tag to give to the image again: comfyui:h100."""
    platform: str
    blobs: dict[str, int]
    labels: dict[str, str] = {}
    made_by: str = ""

    @property
    def size(self) -> int:
        return sum(self.blobs.values())


@dataclass(kw_only=True)
class Checked:
    """An archive of which every byte was read."""

    listing: Listing
    documents: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Small blobs by digest: indexes, manifests, configurations."""
    top: Index | None = None
    sbom: bytes | None = field(default=None, repr=False)

    def image(self) -> tuple[str, Manifest, ImageConfig]:
        """The platform's manifest with its digest, and its configuration. UnsoundError when they are not there."""
        for descriptor in self._images(self.top.manifests if self.top else ()):
            raw = self.documents.get(descriptor.digest, b"")
            manifest = Document(media_type=descriptor.media_type, raw=raw).manifest()
            config = self.documents.get(manifest.config.digest)
            if config is not None:
                found = parse(ImageConfig, config, "configuration")
                if found.platform == self.listing.platform:
                    return descriptor.digest, manifest, found
        raise UnsoundError(f"it holds no image for {self.listing.platform}")

    @property
    def attested(self) -> bool:
        """Whether BuildKit's provenance is in it."""
        return any(
            d.is_attestation
            for raw in self.documents.values()
            if b'"manifests"' in raw
            for d in _maybe_index(raw).manifests
        )

    def _images(self, descriptors: tuple[Descriptor, ...]) -> Iterator[Descriptor]:
        for descriptor in descriptors:
            if descriptor.is_attestation or descriptor.digest not in self.documents:
                continue
            if descriptor.media_type in INDEXES:
                yield from self._images(parse(Index, self.documents[descriptor.digest], "index").manifests)
            elif descriptor.media_type in MANIFESTS:
                yield descriptor


def write(
    source: IO[bytes],
    file: IO[bytes],
    *,
    reference: str,
    platform: str,
    labels: dict[str, str],
    made_by: str,
    sbom: bytes | None = None,
    progress: Callable[[int], None] | None = None,
    threads: int = 0,
) -> Listing:
    """Write what an engine gives out as an archive; `progress` gets the bytes that came.

    EngineError when what comes is not whole, or is not what its digests say. `threads`: 0 for one, in this thread.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=threads, write_checksum=True)
    given = _Given(progress)
    with compressor.stream_writer(file, closefd=False) as packed:
        out = cast("IO[bytes]", packed)
        with tarfile.open(fileobj=out, mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as target:
            with _reading(source) as archive:
                for member in archive:
                    given.copy(archive, member, target)
            if not given.blobs:
                raise EngineError("the engine gave out no OCI layout", hint="Docker from 25 on does")
            listing = Listing(
                reference=reference, platform=platform, blobs=given.blobs, labels=labels, made_by=made_by
            )
            _check_whole(listing, given.top, given.documents)
            if sbom is not None:
                _add(target, SBOM_NAME, sbom)
            _add(target, LIST, listing.model_dump_json(indent=1).encode())
    return listing


class _Given:
    """What of an engine's tar has gone by."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self.blobs: dict[str, int] = {}
        self.documents: dict[str, bytes] = {}
        self.top = b""

    def copy(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: tarfile.TarFile) -> None:
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            target.addfile(member)
            return
        hashed = _Hashed(content, self._progress, keep=member.size <= _SMALL)  # documents, not layers
        target.addfile(member, cast("IO[bytes]", hashed))
        if member.name == "index.json":
            self.top = hashed.kept
        if digest := _digest(member.name):
            if hashed.digest != digest:
                raise EngineError(f"the engine gave out {digest} with other bytes than its digest says")
            self.blobs[digest] = member.size
            self.documents |= {digest: hashed.kept} if hashed.kept else {}


def _check_whole(listing: Listing, top: bytes, documents: dict[str, bytes]) -> None:
    """Docker fetches no blob whose content it has of another image, and then gives out an image without it."""
    missing = "its configuration"
    try:
        found = Checked(listing=listing, documents=documents, top=parse(Index, top, "index.json"))
        _, manifest, _ = found.image()
        lacking = [layer.size for layer in manifest.layers if layer.digest not in listing.blobs]
        if not lacking:
            return
        missing = f"{len(lacking)} of its {len(manifest.layers)} layers ({sum(lacking)} bytes)"
    except UnsoundError:
        pass
    raise EngineError(
        f"the engine gave out {listing.reference} without {missing}: it never fetched them, since another image "
        "brought the same content",
        hint="save on a machine that has no other of these images, or remove those here and pull it again",
    )


def check(path: Path, progress: Callable[[int], None] | None = None) -> Checked:
    """Read an archive from its beginning to its end; `progress` gets how far in the file it is.

    ConfigError when it is none of ours; VerificationError when it is cut off or damaged, with what to do.
    """
    found = _Found(path)
    with opened(path, progress) as archive:
        for member in archive:
            if (content := archive.extractfile(member) if member.isreg() else None) is not None:
                found.take(member, content)
    return found.checked()


class _Found:
    """What of an archive was read so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents: dict[str, bytes] = {}
        self.seen: set[str] = set()
        self.top: Index | None = None
        self.listing: Listing | None = None
        self.sbom: bytes | None = None

    def take(self, member: tarfile.TarInfo, content: IO[bytes]) -> None:
        if digest := _digest(member.name):
            self._blob(digest, _Hashed(content, None, keep=member.size <= _SMALL))
        elif member.name == "index.json":
            try:
                self.top = parse(Index, content.read(_SMALL), "index.json")
            except UnsoundError as e:
                raise damaged(self.path, str(e)) from None
        elif member.name == SBOM_NAME:
            self.sbom = content.read(64 * _CHUNK)
        elif member.name == LIST:
            self.listing = _parsed_listing(self.path, content.read(_SMALL))

    def _blob(self, digest: str, hashed: _Hashed) -> None:
        hashed.drain()
        if hashed.digest != digest:
            raise damaged(self.path, f"the blob {digest} has other bytes than its digest says")
        self.seen.add(digest)
        if hashed.kept:
            self.documents[digest] = hashed.kept

    def checked(self) -> Checked:
        if self.listing is None:
            if not self.seen:
                raise ConfigError(f"{self.path} is no archive of an image", hint="imgbuild save writes one")
            raise damaged(self.path, "its end is missing")
        if missing := sorted(set(self.listing.blobs) - self.seen):
            raise damaged(
                self.path,
                f"{len(missing)} of its {len(self.listing.blobs)} blobs are missing: {missing[0]}",
            )
        return Checked(listing=self.listing, documents=self.documents, top=self.top, sbom=self.sbom)


def pieces(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The tar as an engine takes it in: without what we added."""
    with opened(path, progress) as archive:
        for member in archive:
            if member.name in (LIST, SBOM_NAME):
                continue
            yield member.tobuf(tarfile.PAX_FORMAT)
            content = archive.extractfile(member) if member.isreg() else None
            while content is not None and (piece := content.read(_CHUNK)):
                yield piece
            if content is not None:
                yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(TAR_END)


@contextmanager
def opened(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[tarfile.TarFile]:
    """The tar in an archive, as a stream. What goes wrong in reading it is told as in `check`."""
    try:
        file = path.open("rb")
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(
                f"{path} is no archive of imgbuild: it is not compressed with zstd",
                hint="imgbuild save writes one; what docker save wrote, docker load reads",
            )
        file.seek(0)
        counted = cast("IO[bytes]", _Place(file, progress))
        with zstandard.ZstdDecompressor().stream_reader(
            counted, read_across_frames=True, closefd=False
        ) as raw:
            try:
                with _reading(cast("IO[bytes]", raw)) as archive:
                    yield archive
            except zstandard.ZstdError as e:
                raise damaged(path, f"zstd cannot read on after {file.tell()} bytes ({e})") from None
            except (tarfile.TarError, EngineError, EOFError):
                raise damaged(path, "its end is missing") from None


@contextmanager
def _reading(source: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """A tar stream that must be whole: tarfile takes one that stops between two files for whole."""
    tail = Tail(source)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", tail), mode="r|", bufsize=_CHUNK) as archive:
            yield archive
    except tarfile.ReadError as e:
        raise EngineError(f"the image did not arrive whole: {e}") from None
    if not tail.ended():
        raise EngineError("the image did not arrive whole: its end is missing")


def damaged(path: Path, what: str) -> VerificationError:
    return VerificationError(
        f"{path} is damaged or cut off: {what}; nothing of it was given to an engine",
        hint=f"copy it again; rsync --append-verify goes on where a copy stopped (this one has {path.stat().st_size} bytes)",
    )


def _parsed_listing(path: Path, raw: bytes) -> Listing:
    try:
        listing = Listing.model_validate_json(raw)
    except ValidationError as e:
        raise damaged(path, f"{LIST}: {first_mistake(e)}") from None
    if listing.schema_version != 1:
        raise ConfigError(
            f"{path} was written by a newer imgbuild ({listing.made_by})", hint="load it with that one"
        )
    return listing


def _maybe_index(raw: bytes) -> Index:
    try:
        return parse(Index, raw, "index")
    except UnsoundError:
        return Index(manifests=())


def _digest(name: str) -> str | None:
    """The digest that a blob's name says."""
    if not name.startswith(_BLOBS) or len(name) != len(_BLOBS) + 64:
        return None
    return f"sha256:{name.removeprefix(_BLOBS)}"


def _add(target: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    target.addfile(member, io.BytesIO(content))


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(
        self, file: IO[bytes], progress: Callable[[int], None] | None, *, keep: bool = False
    ) -> None:
        self._file, self._progress, self._keep = file, progress, keep
        self._hash = hashlib.sha256()
        self.kept = b""

    def read(self, size: int = _CHUNK) -> bytes:
        piece = self._file.read(size)
        self._hash.update(piece)
        if self._keep:
            if not self.kept and piece[:1] != b"{":  # no document
                self._keep = False
            else:
                self.kept += piece
        if self._progress:
            self._progress(len(piece))
        return piece

    def drain(self) -> None:
        while self.read():
            pass

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Place:
    """A file that tells how far it was read."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], None] | None) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        if self._progress:
            self._progress(self._file.tell())
        return piece
