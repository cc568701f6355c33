"""The folder that models lie in: its lock, its room, the state of a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from comfywork.models import part
from comfywork.models.errors import BusyError, PlaceError, StoppedError
from comfywork.quantities import human

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from comfywork.models.modellist import ModelFile
    from comfywork.models.record import Entry

LOCK = ".comfyrun-models.lock"
SPARE = 256 << 20
"""Bytes that a pull leaves free."""


class Kind(StrEnum):
    MISSING = "missing"
    PARTIAL = "partial"
    WRONG_SIZE = "wrong size"
    WRONG_HASH = "wrong hash"
    PRESENT = "present"
    """Of the right size, or of one that nobody has stated."""
    RIGHT = "right"
    """Read from end to end, now or as recorded, and what it should be."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file of a list, as it lies here."""

    kind: Kind
    size: int = 0
    """Bytes here, of the file or of its part."""
    detail: str = ""

    @property
    def wrong(self) -> bool:
        return self.kind in (Kind.WRONG_SIZE, Kind.WRONG_HASH)


def look(models: Path, file: ModelFile, entry: Entry | None) -> Found:
    """By size, and by what is recorded; nothing is read from end to end."""
    path = models / file.path
    try:
        here = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror or error}") from None
    if here is None:
        if path.exists():
            return Found(kind=Kind.WRONG_SIZE, detail="is no file")
        kept = part.size_of(path)
        return Found(kind=Kind.PARTIAL, size=kept) if kept else Found(kind=Kind.MISSING)
    if file.size is not None and here != file.size:
        return Found(kind=Kind.WRONG_SIZE, size=here, detail=f"{here:,} bytes, the list says {file.size:,}")
    if entry is not None and _recorded(entry, path):
        if file.sha256 and entry.sha256 != file.sha256:
            return Found(
                kind=Kind.WRONG_HASH, size=here, detail=_hashes(entry.sha256, file.sha256, "the list says")
            )
        if file.sha256 or entry.evidence != "nobody":
            return Found(kind=Kind.RIGHT, size=here)
    return Found(kind=Kind.PRESENT, size=here)


def prove(
    models: Path,
    file: ModelFile,
    entry: Entry | None,
    read: Callable[[int], None],
) -> tuple[Found, str | None]:
    """Read from end to end; also the hash. `read` is told the bytes, and may raise to stop."""
    quick = look(models, file, None)
    if quick.kind is not Kind.PRESENT:
        return quick, None
    found = sha256(models / file.path, read)
    expected, by = (file.sha256, "the list says") if file.sha256 else (None, "")
    if expected is None and entry is not None:
        expected, by = entry.sha256, "it had when it was pulled"
    if expected is None:
        return Found(kind=Kind.PRESENT, size=quick.size, detail="nobody has stated its hash"), found
    if found != expected:
        return Found(kind=Kind.WRONG_HASH, size=quick.size, detail=_hashes(found, expected, by)), found
    return Found(kind=Kind.RIGHT, size=quick.size), found


def sha256(path: Path, read: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(part.CHUNK):
                digest.update(block)
                read(len(block))
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror or error}") from None
    return digest.hexdigest()


def make(models: Path) -> None:
    """The folder itself, writable. PlaceError when it cannot be had."""
    try:
        models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaceError(
            f"{models}: {error.strerror or error}", hint="set MODELS_PATH, or --models DIR"
        ) from None
    if not os.access(models, os.W_OK | os.X_OK):
        raise PlaceError(
            f"{models}: not writable by UID {os.getuid()}", hint="give it to that UID, or set MODELS_PATH"
        )


@contextmanager
def locked(models: Path, *, wait: bool, stop: threading.Event, said: Callable[[str], None]) -> Iterator[None]:
    """Only one pull at a time works in a folder. The kernel gives the lock back when a process dies."""
    path = models / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror or error}") from None
    try:
        told = False
        while not _take(handle, path):
            if not wait:
                raise BusyError(
                    f"another pull works in {models}: {_holder(handle)}", hint="wait for it: --wait"
                )
            if not told:
                said(f"waiting for another pull in {models}: {_holder(handle)}")
                told = True
            if stop.wait(0.5):
                raise StoppedError("stopped while waiting for another pull")
        who = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())})
        os.ftruncate(handle, 0)
        os.pwrite(handle, who.encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PlaceError(f"{path}: this file system has no locks ({error.strerror})") from None
    return True


def _holder(handle: int) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        who = json.loads(os.pread(handle, 4096, 0))
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(who["since"])))
        return f"process {int(who['pid'])} on {str(who['host'])[:80]}, since {when}"
    return "by a process that has not said who it is"


def check_room(models: Path, needs: Mapping[str, int]) -> None:
    """Bytes still to come, by path, against what is free, for each file system. PlaceError with the numbers."""
    devices: dict[int, tuple[Path, int]] = {}
    for path, size in needs.items():
        place = (models / path).parent
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        first, total = devices.get(device, (place, 0))
        devices[device] = (first, total + size)
    for place, total in devices.values():
        free = shutil.disk_usage(place).free
        if total and total + SPARE > free:
            raise PlaceError(
                f"{place}: {human(total)} are still to come, and {human(free)} are free "
                f"({human(SPARE)} of them are left alone); nothing was fetched",
                hint="make room, set MODELS_PATH, or name fewer models with --only",
            )


def _recorded(entry: Entry, path: Path) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)


def _hashes(found: str, expected: str, by: str) -> str:
    return f"sha256 {found}, {by} {expected}"
