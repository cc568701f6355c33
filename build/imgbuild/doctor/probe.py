"""Everything a check may ask of the machine, as one value: tests hand in recorded replies."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgbuild import proc
from imgbuild.errors import EngineError
from imgbuild.proc import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOT_STARTED = 126
NOT_FOUND = 127
TIMED_OUT = 124


class Run(Protocol):
    def __call__(self, *argv: str, timeout: float = ..., env: Mapping[str, str] = ...) -> Result:
        """Run a command; never raises. 124: out of time, 126: could not be started, 127: not installed.

        `env` is added to the machine's own environment.
        """


class Execute(Protocol):
    def __call__(self, program: bytes, *, env: Mapping[str, str], timeout: float) -> Result:
        """Run the bytes of a program, with only `env` as its environment; the same replies as Run."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    device: int
    free: int
    """Bytes that this user may still write."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    env: Mapping[str, str]
    arch: str
    """As `uname -m` says it."""
    uid: int
    python: str
    uv: str | None
    run: Run
    execute: Execute
    which: Callable[[str], tuple[str, ...]]
    """Every different program of that name on PATH, the one that is used first."""
    read: Callable[[Path], str | None]
    """A file's text, or None when there is none; OSError when there is one that cannot be read."""
    listing: Callable[[Path], tuple[str, ...]]
    """Names in a folder, sorted; empty when there is none."""
    exists: Callable[[Path], bool]
    disk: Callable[[Path], Disk | None]
    """Of the nearest folder above that exists."""

    @property
    def root(self) -> bool:
        return self.uid == 0


def this_machine(env: Mapping[str, str]) -> Probe:
    """The probe that really asks."""

    def run(*argv: str, timeout: float = 15, env: Mapping[str, str] = {}) -> Result:
        return _attempt(argv, {**base, **env}, timeout)

    base = {**env, "LC_ALL": "C.UTF-8"}
    return Probe(
        env=env,
        arch=platform.machine(),
        uid=os.geteuid(),
        python=sys.executable,
        uv=_uv(env),
        run=run,
        execute=_execute,
        which=lambda name: _which_all(name, env),
        read=_read,
        listing=lambda folder: tuple(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else (),
        exists=lambda path: path.exists(),
        disk=_disk,
    )


def _attempt(argv: tuple[str, ...], env: Mapping[str, str], timeout: float) -> Result:
    try:
        return proc.run(argv, env=env, check=False, timeout=timeout)
    except EngineError as e:  # not installed; or, with a cause, not for this processor
        code = NOT_FOUND if e.__cause__ is None else NOT_STARTED
        return Result(returncode=code, stdout="", stderr=e.message)


def _execute(program: bytes, *, env: Mapping[str, str], timeout: float) -> Result:
    with tempfile.TemporaryDirectory(prefix="imgbuild-doctor-") as folder:
        path = Path(folder, "program")
        path.write_bytes(program)
        path.chmod(0o755)
        # Another thread's child may hold the file open for writing until it has become its own program.
        for _ in range(20):
            done = _attempt((str(path),), {"PATH": os.defpath, **env}, timeout)
            if done.stderr != os.strerror(errno.ETXTBSY):
                break
        return done


def _which_all(name: str, env: Mapping[str, str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        if path := shutil.which(name, path=folder or "."):
            found.setdefault(os.path.realpath(path), path)
    return tuple(found.values())


def _uv(env: Mapping[str, str]) -> str | None:
    try:
        import uv  # noqa: PLC0415  (a dependency, but doctor must be able to say that it is broken)

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        return proc.which("uv", env=env)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _disk(path: Path) -> Disk | None:
    for folder in (path, *path.parents):
        try:
            device, free = folder.stat().st_dev, shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
        return Disk(device=device, free=free)
    return None
