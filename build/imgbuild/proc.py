"""The only module that starts a process.

Every command is a list. A failure carries the command in a form that can be
pasted into a shell, and the last lines it printed.
"""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Never

from imgbuild.errors import EngineError, ImgbuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_streaming: set[subprocess.Popen[bytes]] = set()
"""What `stream` waits for, in whichever thread."""
_one_line = threading.Lock()
verbose = False
"""Whether each command is echoed to stderr as `+ command`; set once, by the command line."""


class ProcError(ImgbuildError):
    """A program ended with a status other than 0, or did not end in time."""

    exit_code = 6

    def __init__(self, argv: Sequence[str], returncode: int | None, output: str) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.output = output
        ending = "did not end in time" if returncode is None else f"ended with status {returncode}"
        super().__init__(
            f"{argv[0]} {ending}:\n" + "\n".join(output.strip().splitlines()[-15:]),
            hint=f"the command was: {shlex.join(argv)}",
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def which(program: str, *, env: Mapping[str, str] | None = None) -> str | None:
    """The path of a program on PATH, or None."""
    return shutil.which(program, path=(env or os.environ).get("PATH"))


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> Result:
    """Run a command, keep what it prints.

    `timeout` is in seconds. With `check`, a status other than 0 or a timeout
    raises ProcError; without, a timeout gives returncode 124.
    """
    words = _words(argv, env)
    try:
        done = subprocess.run(
            words,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        text = f"{_text(e.stdout)}{_text(e.stderr)}"
        if check:
            raise ProcError(words, None, text) from None
        return Result(returncode=124, stdout=_text(e.stdout), stderr=_text(e.stderr))
    except OSError as e:  # not executable here: another architecture's program, say
        raise EngineError(f"{words[0]} cannot be started: {e.strerror or e}") from e
    if check and done.returncode:
        raise ProcError(words, done.returncode, done.stdout + done.stderr)
    return Result(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def stream(
    argv: Sequence[str | Path],
    *,
    log: IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    show: bool = True,
    prefix: str | None = None,
) -> int:
    """Run a command whose progress a person watches; return its status.

    What it prints goes to stderr and to `log`. On a terminal the command gets
    a terminal of its own, so that BuildKit's moving display stays what it is.
    With a `prefix`, which is for several commands at once, stderr gets whole
    lines that begin with it.
    """
    words = _words(argv, env)
    use_pty = show and prefix is None and sys.stderr.isatty()
    write = _write if prefix is None else _Lines(prefix).write
    if use_pty:
        reader, writer = pty.openpty()
    else:
        reader, writer = os.pipe()
    child = subprocess.Popen(
        words,
        env=dict(env) if env is not None else None,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    _streaming.add(child)
    try:
        while chunk := _read(reader):
            log.write(chunk)
            if show:
                write(chunk)
        if show and prefix is not None:
            write(b"\n")
        return child.wait()
    except BaseException:
        # Ctrl-C reaches the child too (same terminal); give it time to cancel the solve.
        if child.poll() is None:
            child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
    finally:
        _streaming.discard(child)
        log.flush()
        os.close(reader)


def stop_streams() -> None:
    """End what other threads stream: an interrupt reaches the main thread alone."""
    for child in tuple(_streaming):
        if child.poll() is None:
            child.terminate()


def _write(chunk: bytes) -> None:
    sys.stderr.buffer.write(chunk)
    sys.stderr.buffer.flush()


class _Lines:
    """Whole lines to stderr, each behind the same words."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._rest = prefix.encode(), b""

    def write(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        text = b"".join(self._prefix + line + b"\n" for line in lines if line)
        with _one_line:
            _write(text)


def become(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Never:
    """Put a program into this process's place: terminal, signals and exit code are its own."""
    words = [str(a) for a in argv]
    path = which(words[0], env=env)
    if path is None:
        raise EngineError(f"the program {words[0]!r} is not installed", hint="imgbuild doctor --fix")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(path, words, dict(os.environ if env is None else env))  # noqa: S606  (a list, no shell)


@contextmanager
def reading(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Iterator[IO[bytes]]:
    """What a command writes to stdout, as a stream; ProcError when it fails, whoever reads to its end or not."""
    words = _words(argv, env)
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            words,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as child:
            assert child.stdout is not None
            try:
                yield child.stdout
            except BaseException:
                child.terminate()
                raise
            while child.stdout.read(1 << 20):  # or it would wait for ever to write the rest
                pass
        if child.returncode:
            raise ProcError(words, child.returncode, _said(errors))


def feed(
    argv: Sequence[str | Path], pieces: Iterable[bytes], *, env: Mapping[str, str] | None = None
) -> Result:
    """Run a command that reads `pieces` from stdin; ProcError when it fails.

    When it ends before it has read all, that is a failure too. An exception of `pieces` ends the command.
    """
    words = _words(argv, env)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        broken = False
        with subprocess.Popen(
            words,
            env=dict(env) if env is not None else None,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
        ) as child:
            assert child.stdin is not None
            try:
                for piece in pieces:
                    child.stdin.write(piece)
                child.stdin.close()
            except BrokenPipeError:
                broken = True
                with suppress(BrokenPipeError):
                    child.stdin.close()
            except BaseException:
                child.kill()
                with suppress(BrokenPipeError):
                    child.stdin.close()
                raise
        if child.returncode or broken:
            raise ProcError(words, child.returncode, _said(errors) or "it read only a part of its input")
        return Result(returncode=0, stdout=_said(out), stderr=_said(errors))


def _words(argv: Sequence[str | Path], env: Mapping[str, str] | None) -> list[str]:
    words = [str(a) for a in argv]
    if which(words[0], env=env) is None:
        raise EngineError(f"the program {words[0]!r} is not installed", hint="imgbuild doctor --fix")
    if verbose:
        print("+", shlex.join(words), file=sys.stderr)
    return words


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(100_000).decode(errors="replace")


def spawn_daemon(argv: Sequence[str | Path], *, log: Path) -> int:
    """Start a process that outlives us, in a session of its own; return its pid."""
    words = [str(a) for a in argv]
    if verbose:
        print("+", shlex.join(words), "&", file=sys.stderr)
    with log.open("ab") as out:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
        )
    child.returncode = 0  # it is nobody's child any more: no warning that it still runs
    return child.pid


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: the other end of the terminal is closed
        return b""


def _text(raw: bytes | str | None) -> str:
    if raw is None:
        return ""
    return raw if isinstance(raw, str) else raw.decode(errors="replace")
