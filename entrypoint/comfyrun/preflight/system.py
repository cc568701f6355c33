"""Everything the checks may ask of the machine, as one value: tests hand in recorded replies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from comfyrun.preflight.words import one_line

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

LIMIT = 1 << 20
"""Bytes of a program's answer that are kept; none of those asked here says a hundredth of it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a program ended."""

    outcome: Literal["ended", "late", "absent"]
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.outcome == "ended" and self.returncode == 0

    @property
    def why(self) -> str:
        """What went wrong, in words."""
        if self.outcome == "late":
            return f"no answer in {self.seconds:.0f} s"
        if self.outcome == "absent":
            return f"cannot be started: {self.stderr}"
        last = next(
            (text for line in reversed(self.stderr.splitlines()) if (text := one_line(line, 300))), ""
        )
        if self.returncode < 0:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:
                name = f"signal {-self.returncode}"
            return f"killed by {name}"
        return f"exit code {self.returncode}" + (f": {last}" if last else "")


class Run(Protocol):
    def __call__(self, *argv: str, environ: Mapping[str, str], timeout: float) -> Asked:
        """Run a program with only this environment and nothing on its input; never raises."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Of a file system, in bytes."""

    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class System:
    run: Run
    read: Callable[[str], str | None]
    """A file's text; None when it is not there or cannot be read."""
    names: Callable[[str], tuple[str, ...]]
    """Names in a folder, sorted; empty when there is none."""
    exists: Callable[[str], bool]
    folder: Callable[[str], bool]
    """Whether it is a folder."""
    space: Callable[[str], Space | None]
    """Of the file system that holds a folder."""
    writable: Callable[[str], OSError | None]
    """Why a file cannot be written there, found by writing one; None when it can."""
    executable: Callable[[str], bool | None]
    """Whether a library could be loaded from there; None when that cannot be tried."""
    memlock: Callable[[], int | None]
    """Bytes that may be locked, None for no limit."""


def this_machine() -> System:
    return System(
        run=run,
        read=_read,
        names=_names,
        exists=os.path.exists,
        folder=os.path.isdir,
        space=_space,
        writable=_writable,
        executable=_executable,
        memlock=_memlock,
    )


def run(*argv: str, environ: Mapping[str, str], timeout: float) -> Asked:
    import subprocess  # noqa: PLC0415  (a tenth of a second in a slow container)

    begin = time.monotonic()
    try:
        # A group of its own: what the program started ends with it.
        process = subprocess.Popen(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Asked(outcome="absent", stderr=getattr(error, "strerror", None) or str(error))
    late = True
    try:
        out, err, late = _drain(process, begin + timeout)
    finally:
        _end(process, kill=late)
    return Asked(
        outcome="late" if late else "ended",
        returncode=process.returncode or 0,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        seconds=time.monotonic() - begin,
    )


def _drain(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes, bool]:
    """What it writes until it ends, and whether it is late. `communicate` would keep all of an endless answer."""
    import selectors  # noqa: PLC0415
    import subprocess  # noqa: PLC0415

    kept: dict[int, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                kept[stream.fileno()] = bytearray()
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                elif len(kept[key.fd]) < LIMIT:
                    kept[key.fd] += piece
        late = bool(selector.get_map())
    if not late:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
    out, err = (bytes(text[:LIMIT]) for text in kept.values())
    return out, err, late


def _end(process: subprocess.Popen[bytes], *, kill: bool) -> None:
    import subprocess  # noqa: PLC0415

    if kill:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # A call into a driver that hangs cannot be killed: it is left behind.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read(path: str) -> str | None:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(LIMIT).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _names(path: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in Path(path).iterdir()))
    except (OSError, ValueError):
        return ()


def _space(path: str) -> Space | None:
    try:
        found = os.statvfs(path)
    except (OSError, ValueError):
        return None
    return Space(total=found.f_frsize * found.f_blocks, free=found.f_frsize * found.f_bavail)


def _writable(path: str) -> OSError | None:
    # Not the process id: it is the same in every container, and several may share a volume.
    probe = Path(path) / f".comfyrun-{os.urandom(8).hex()}"
    try:
        with probe.open("xb") as stream:
            stream.write(b"?")
    except ValueError as error:
        return OSError(0, str(error))
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError, ValueError):
            probe.unlink()
    return None


def _executable(path: str) -> bool | None:
    # What dlopen does: the mount's options alone do not tell what a security module says.
    import mmap  # noqa: PLC0415

    probe = Path(path) / f".comfyrun-{os.urandom(8).hex()}"
    try:
        with probe.open("xb+") as stream:
            stream.write(b"\0" * mmap.PAGESIZE)
            stream.flush()
            try:
                mmap.mmap(
                    stream.fileno(),
                    mmap.PAGESIZE,
                    flags=mmap.MAP_PRIVATE,
                    prot=mmap.PROT_READ | mmap.PROT_EXEC,
                ).close()
            except PermissionError:
                return False
    except (OSError, ValueError):
        return None
    finally:
        with contextlib.suppress(OSError, ValueError):
            probe.unlink()
    return True


def _memlock() -> int | None:
    import resource  # noqa: PLC0415

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
