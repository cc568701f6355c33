"""A file that is being fetched: NAME.part and NAME.part.json beside the place it will take.

What a crash leaves is either right or found out: the state says up to where the bytes were on disk (fsync) and what they
hashed to; the rest is taken on trust only where the hash of the whole file is known and decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK = 1 << 20
CHECKPOINT = 256 << 20
"""Bytes between two fsyncs."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Which file a part is of."""

    source: str
    sha256: str | None = None
    size: int | None = None
    etag: str | None = None
    synced: int = 0
    """Bytes that were on disk for certain …"""
    prefix: str = ""
    """… and their SHA-256."""
    schema: int = 1


class Part:
    """Used as a context: it holds the open file. OSError goes up as it is."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._state_path = target.with_name(f"{target.name}.part.json")
        self.state: State | None = None
        self.offset = 0
        self._hash = hashlib.sha256()
        self._fd = -1

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        # A link in the part's place would lead the bytes elsewhere.
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def sha256(self) -> str:
        """Of everything up to `offset`."""
        return self._hash.hexdigest()

    def take_up(self, state: State, read: Callable[[int], None]) -> int:
        """Keep what an earlier run left of the same file, and hash it; returns how many bytes.

        `read` is told the bytes hashed, and may raise to stop.
        """
        found = read_state(self._state_path)
        here = os.fstat(self._fd).st_size
        if found is None or not _same(found, state):
            self.restart(state)
            return 0
        keep = here if state.sha256 else min(here, found.synced)
        if state.size is not None and keep > state.size:
            keep = 0
        if not self._hash_first(keep, found, read):
            self.restart(state)
            return 0
        os.ftruncate(self._fd, self.offset)
        os.lseek(self._fd, self.offset, os.SEEK_SET)
        self.state = replace(found, source=state.source, size=state.size or found.size, sha256=state.sha256)
        if found.source != state.source:
            self.state = replace(self.state, etag=None)
        self._save()
        return self.offset

    def _hash_first(self, count: int, found: State, read: Callable[[int], None]) -> bool:
        """False when the bytes are not those that were synced: a crash, or another program."""
        digest = hashlib.sha256()
        if count < found.synced:
            return False
        done = 0
        os.lseek(self._fd, 0, os.SEEK_SET)
        while done < count:
            until = found.synced if done < found.synced else count
            block = os.read(self._fd, min(CHUNK, until - done))
            if not block:
                return False
            digest.update(block)
            done += len(block)
            read(len(block))
            if done == found.synced and digest.hexdigest() != found.prefix:
                return False
        self._hash, self.offset = digest, done
        return True

    def restart(self, state: State) -> None:
        """From the first byte."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash, self.offset = hashlib.sha256(), 0
        self.state = replace(state, synced=0, prefix="")
        self._save()

    def learned(self, *, etag: str | None, size: int | None) -> None:
        """What the server says of the file that these bytes are of."""
        assert self.state is not None
        if (etag, size) != (self.state.etag, self.state.size):
            self.state = replace(self.state, etag=etag, size=size)
            self._save()

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[os.write(self._fd, view) :]
        self._hash.update(block)
        self.offset += len(block)
        assert self.state is not None
        if self.offset - self.state.synced >= CHECKPOINT:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Bytes first, then the state that vouches for them."""
        assert self.state is not None
        if self.offset == self.state.synced:
            return
        os.fsync(self._fd)
        self.state = replace(self.state, synced=self.offset, prefix=self.sha256)
        self._save()

    def finish(self) -> None:
        """Into its place, whole or not at all. The caller has compared `sha256` and `offset`."""
        os.fsync(self._fd)
        self.path.replace(self.target)
        _sync_folder(self.target.parent)
        self._state_path.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def _save(self) -> None:
        assert self.state is not None
        fresh = self._state_path.with_name(f"{self._state_path.name}~")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.state), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._state_path)


def read_state(path: Path) -> State | None:
    """None when there is none that can be read: the part beside it is then worth nothing."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = State(**json.loads(path.read_text(encoding="utf-8")))
        if found.schema == 1 and isinstance(found.synced, int) and found.synced >= 0:
            return found
    return None


def sweep(target: Path) -> None:
    """Remove the state of a part that took its place just before a crash."""
    if not size_of(target):
        with contextlib.suppress(OSError):
            target.with_name(f"{target.name}.part.json").unlink(missing_ok=True)


def size_of(target: Path) -> int:
    """Bytes of a part beside `target`, 0 when there is none."""
    try:
        return target.with_name(f"{target.name}.part").stat().st_size
    except OSError:
        return 0


def _same(found: State, wanted: State) -> bool:
    """One file: by its hash where it is known, else by where it comes from."""
    if wanted.sha256 or found.sha256:
        return wanted.sha256 == found.sha256
    return found.source == wanted.source and (wanted.size or found.size) == (found.size or wanted.size)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems have no fsync of a folder; the rename stands all the same
    finally:
        os.close(handle)
