"""Everything that a repair does to the machine, as one value: tests hand in ones that only take notes."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgbuild.doctor.probe import Probe


@dataclass(frozen=True, kw_only=True)
class Hands:
    probe: Probe
    write: Callable[[Path, str], None]
    """Replace a file as a whole or not at all; makes its folder, keeps its mode."""
    poke: Callable[[Path, str], None]
    """One write to a file of the kernel's."""
    spawn: Callable[[Sequence[str], Path], int]
    alive: Callable[[int], bool]
    terminate: Callable[[int], None]
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    say: Callable[[str], None]
    """A line for people, where a step does more than its title says."""


def own_hands(probe: Probe, say: Callable[[str], None]) -> Hands:
    return Hands(
        probe=probe,
        write=_write,
        poke=_poke,
        spawn=lambda argv, log: proc.spawn_daemon(argv, log=log),
        alive=_alive,
        terminate=lambda pid: os.kill(pid, signal.SIGTERM),
        sleep=time.sleep,
        clock=time.monotonic,
        say=say,
    )


def _write(path: Path, text: str) -> None:
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _poke(path: Path, text: str) -> None:
    with path.open("w") as out:
        out.write(text)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet collected does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
