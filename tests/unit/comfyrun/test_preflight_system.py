"""Asking the real machine: programs that hang, crash, say too much, or are not there."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from comfyrun.preflight import system
from comfyrun.preflight.system import LIMIT, Asked, run, this_machine


def python(script: str, timeout: float = 30) -> Asked:
    return run(sys.executable, "-ISB", "-c", script, environ={"A": "1"}, timeout=timeout)


def test_what_a_program_says() -> None:
    asked = python("import os, sys; print('out', dict(os.environ)['A']); print('err', file=sys.stderr)")
    assert (asked.outcome, asked.returncode, asked.stdout, asked.stderr) == ("ended", 0, "out 1\n", "err\n")
    assert asked.ok
    assert 0 < asked.seconds < 30


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import sys; print('one\\n\\n two \\n', file=sys.stderr); sys.exit(9)", "exit code 9: two"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),
    ],
)
def test_how_it_failed(script: str, why: str) -> None:
    asked = python(script)
    assert not asked.ok
    assert asked.why == why


def test_a_program_that_is_not_there() -> None:
    asked = run("/no/such/program", environ={}, timeout=5)
    assert (asked.outcome, asked.why) == ("absent", "cannot be started: No such file or directory")
    assert run("a\0b", environ={}, timeout=5).outcome == "absent"
    assert run(sys.executable, environ={"A=B": "\0"}, timeout=5).outcome == "absent"


@pytest.mark.parametrize(
    "script",
    [
        "import time; time.sleep(60)",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        # It ends itself, and leaves somebody behind who holds what it wrote to.
        "import os, time; os.fork() or time.sleep(60)",
        # It says goodbye and stays.
        "import os, time; os.close(1); os.close(2); time.sleep(60)",
    ],
)
def test_a_program_that_hangs(script: str) -> None:
    begin = time.monotonic()
    asked = python(script, timeout=1)
    assert (asked.outcome, asked.why) == ("late", "no answer in 1 s")
    assert time.monotonic() - begin < 15


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"""
import os, time
child = os.fork()
if not child:
    time.sleep(60)
open({str(mark)!r}, 'w').write(str(child))
time.sleep(60)
"""
    python(script, timeout=3)
    grandchild = int(mark.read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{grandchild}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the grandchild still runs")


def test_a_program_that_never_stops_talking() -> None:
    asked = python("while True: print('x' * 10000)", timeout=2)
    assert asked.outcome == "late"
    assert len(asked.stdout) <= LIMIT
    much = python("print('y' * 3_000_000)", timeout=60)
    assert (much.outcome, len(much.stdout)) == ("ended", LIMIT)


def test_what_is_no_text() -> None:
    assert python("import sys; sys.stdout.buffer.write(b'\\xff\\x00')").stdout == "\ufffd\0"


def test_it_reads_nothing_of_ours() -> None:
    assert python("import sys; print(repr(sys.stdin.read()))").stdout == "''\n"


def test_files_and_folders(tmp_path: Path) -> None:
    here = this_machine()
    (tmp_path / "b").write_bytes(b"x\xff")
    (tmp_path / "a").mkdir()
    assert here.read(str(tmp_path / "b")) == "x\ufffd"
    assert here.read(str(tmp_path)) is None
    assert here.read("a\0b") is None
    assert here.names(str(tmp_path)) == ("a", "b")
    assert here.names(str(tmp_path / "b")) == ()
    assert here.names("a\0b") == ()
    assert here.folder(str(tmp_path / "a"))
    assert here.exists(str(tmp_path / "b"))
    assert not here.exists(str(tmp_path / "c"))
    space = here.space(str(tmp_path))
    assert space is not None
    assert 0 <= space.free <= space.total
    assert here.space("/no/such/place") is None
    assert here.memlock() is None or isinstance(here.memlock(), int)


def test_writing_and_executing(tmp_path: Path) -> None:
    here = this_machine()
    assert here.writable(str(tmp_path)) is None
    assert here.executable(str(tmp_path)) is True
    assert list(tmp_path.iterdir()) == []
    missing = here.writable(str(tmp_path / "none"))
    assert isinstance(missing, FileNotFoundError)
    assert here.executable(str(tmp_path / "none")) is None
    assert isinstance(here.writable("a\0b"), OSError)
    assert here.executable("a\0b") is None


def test_a_place_without_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert system._executable(str(tmp_path)) is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc is mounted")
def test_a_file_system_that_takes_nothing() -> None:
    assert isinstance(this_machine().writable("/proc"), OSError)
