"""What goes wrong in the middle of a build: one message, its exit code, and everything else as it was."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from kit import TARGET, imgbuild, look, wait_for
from scratch import replace_in, tool_argv, tool_env

_NODES = "\nFROM host AS nodes\n"


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.fixture
def slow(changed) -> str:
    """A stage of the changed copy takes for ever; returns how long, which is in no other command line."""
    seconds = str(100_000 + os.getpid())
    replace_in(changed.root / "templates/comfyui.Dockerfile.j2", _NODES, f"{_NODES}RUN sleep {seconds}\n")
    return seconds


def sleeping(seconds: str) -> bool:
    """Whether a process of that command line runs here (BuildKit's steps are processes of this machine)."""
    wanted = f"sleep\0{seconds}\0".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted:
                return True
        except OSError:  # it has just ended
            continue
    return False


def test_ctrl_c_in_the_middle(client, copy, cpu, changed, slow, tmp_path):
    before = look(client, copy).identity
    argv = tool_argv("--project", changed.root, "build", "--target", TARGET, "--progress", "plain")
    with (tmp_path / "stderr").open("wb") as err:
        # A session of its own, as a terminal has: Ctrl-C goes to the tool and to buildx alike.
        child = subprocess.Popen(argv, env=tool_env(), stdout=err, stderr=err, start_new_session=True)
        try:
            said = (tmp_path / "stderr").read_text
            begun = wait_for(lambda: f"RUN sleep {slow}" in said() or child.poll() is not None, 120)
            assert begun, said()
            assert child.poll() is None, said()
            wait_for(lambda: sleeping(slow), 10)
            os.killpg(child.pid, signal.SIGINT)
            assert child.wait(timeout=60) == 130, said()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    text = said()
    assert text.count("interrupted: finished parts are kept") == 1
    assert "Traceback" not in text
    assert errors(text) == []
    assert look(client, copy).identity == before
    assert wait_for(lambda: not sleeping(slow), 30), "the step runs on in the engine"

    again = imgbuild(copy, "build", "--target", TARGET)
    assert again.returncode == 0, again.stderr[-3000:]
    assert look(client, copy).image.layers == cpu.image.layers


def test_a_stage_that_fails(client, copy, cpu, changed):
    before = look(client, copy).identity
    replace_in(
        changed.root / "templates/comfyui.Dockerfile.j2",
        _NODES,
        f"{_NODES}RUN echo no such luck >&2; exit 7\n",
    )
    done = imgbuild(changed, "build", "--target", TARGET)
    assert done.returncode == 6
    assert len(errors(done.stderr)) == 1
    message = done.stderr[done.stderr.index("error:") :]
    assert "cpu: stage" in message
    assert "nodes" in message
    assert "no such luck" in message
    assert f"hint: imgbuild build --target {TARGET}" in message
    assert "Traceback" not in done.stderr
    log = next(line for line in message.splitlines() if "the whole log: " in line).partition("log: ")[2]
    assert "no such luck" in Path(log).read_text()
    assert look(client, copy).identity == before


def test_no_engine_where_it_should_be(copy, tmp_path):
    env = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    done = imgbuild(copy, "build", "--target", TARGET, env=env)
    assert done.returncode == 5
    assert len(errors(done.stderr)) == 1
    assert "no Docker engine can be reached" in done.stderr
    assert "hint: imgbuild doctor --fix" in done.stderr
    assert "Traceback" not in done.stderr
