"""A worker's own folder on the cache volume: what its ComfyUI writes, until the storage has it.

Several workers may share the volume. Each holds a lock on its folder for as long as it lives, so that one that starts
can tell what nobody needs any more from what another one uses.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "worker"
STATE = "agent.json"
"""What the agent says of itself, and `comfyrun health` reads."""
_LOCK = ".lock"
_PATIENCE = 2.0  # seconds: another one may just be looking whether it is left over
# A new ComfyUI knows nothing of what an old one wrote.
_EMPTIED = ("input", "output", "temp")


def place(cache: str, worker: str) -> str:
    """Where a worker of this id has its folder."""
    return f"{cache}/{FOLDER}/{worker}"


def claim(cache: str, worker: str) -> int:
    """Take a worker's folder, emptied of an earlier life's files, and clear away those that nobody holds.

    Returns the lock, an open file: it is held until the process ends. Raises MachineError when another worker of
    this id holds it.
    """
    folder = Path(place(cache, worker))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _hold(folder, _PATIENCE)
        if lock is None:
            raise MachineError(
                f"another worker with the id {worker} uses {folder}: give each its own WORKER_ID, or its own cache volume"
            )
        folder.mkdir(exist_ok=True)
        (folder / STATE).unlink(missing_ok=True)
        for name in _EMPTIED:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} cannot be used: {error.strerror or error}") from None
    for other in _others(folder):
        _clear(other)
    return lock


def _others(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for entry in sorted(folder.parent.iterdir()):
            if entry != folder and entry.is_dir() and not entry.is_symlink():
                yield entry


def _clear(folder: Path) -> None:
    """What nobody holds goes, if it may: it can be another user's."""
    lock = None
    with suppress(OSError):
        lock = _hold(folder, 0)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            _lock_of(folder).unlink()
        os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_LOCK}")


def _hold(folder: Path, patience: float) -> int | None:
    """The lock of a folder; None when somebody else holds it so long."""
    path, end = _lock_of(folder), time.monotonic() + patience
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the name meanwhile; then a lock on the file means nothing.
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(file)
                return None
            time.sleep(0.05)
        os.close(file)
