"""comfyrun as the parent of ComfyUI and of an agent: who is restarted, who ends with whom, and in which order."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from realimages import FALLBACK, PINNED, image, table
from syntheticui import MACHINE
from test_comfyrun_cli import free_port

import comfyrun
from comfyrun import cli, client, health, scratch, state, worker
from comfyrun.errors import ConfigError, MachineError
from comfyrun.health import UnhealthyError
from comfyrun.launch import plan
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


HERE = Path(__file__).parent
PATIENCE = 20  # seconds, on a busy machine

# comfyrun's own start, less what finds out what to start; and less of the pauses.
PARENT = f"""
import json, os, sys
sys.path.insert(0, {str(Path(comfyrun.__file__).parent.parent)!r})
from comfyrun import client, companion, process
from comfyrun.logs import Log
companion._FIRST, companion._LONGEST = 0.1, 0.4
given = json.loads(sys.argv[1])
agent = companion.Companion(argv=tuple(given["agent"]), environment=dict(os.environ), drain=given["drain"],
                            comfyui=3.0, hand_back=given["hand_back"])
server = client.Server(host="127.0.0.1", port=given["port"], tls=False)
told = {{"worker": {{"id": "one", "state": given["state"], "timeout": 60}}}}
log = Log(given["mode"], hidden=("hunter22hunter22",))
sys.exit(process.run(given["comfyui"], dict(os.environ), server, log, 8.0, agent, told))
"""


class Pair:
    """A comfyrun with both its children."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder, self.process, self.port = folder, process, port

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    def notes(self, what: str) -> list[tuple[float, int]]:
        """When, and which agent."""
        file = self.folder / "agent.log"
        rows = [line.split(" ", 2) for line in file.read_text().splitlines()] if file.exists() else []
        return [(float(when), int(pid)) for when, pid, text in rows if text == what]

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, self.err
            assert self.process.poll() is None, self.err
            time.sleep(0.02)

    def up(self) -> Pair:
        self.until(lambda: self.alive() and self.notes("start"))
        return self

    def alive(self) -> bool:
        server = client.Server(host="127.0.0.1", port=self.port, tls=False)
        with contextlib.suppress(client.NoAnswerError):
            client.get(server, "/system_stats", time.monotonic() + 1)
            return True
        return False

    def comfyui(self) -> int:
        """Its process id: the child that listens."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(c) for c in children if b"fakeui.py" in Path(f"/proc/{c}/cmdline").read_bytes())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    started = []

    def start(
        *agent: str,
        comfyui: tuple[str, ...] = (),
        drain: float = 8.0,
        hand_back: float = 5.0,
        mode: str = "text",
    ) -> Pair:
        port = free_port()
        given = {
            "agent": [sys.executable, str(HERE / "fakeagent.py"), str(tmp_path), *agent],
            "comfyui": [sys.executable, str(HERE / "fakeui.py"), str(port), *comfyui],
            "drain": drain,
            "hand_back": hand_back,
            "port": port,
            "state": str(tmp_path / "agent.json"),
            "mode": mode,
        }
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-IS", "-c", PARENT, json.dumps(given)], stdout=out, stderr=err
            )
        started.append(process)
        return Pair(tmp_path, process, port)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_both_run_and_their_lines_are_told_apart(pair: Callable[..., Pair]) -> None:
    both = pair().up()
    both.until(lambda: "Starting server" in both.err and "takes jobs" in both.out)
    assert "worker: [INFO] agent" in both.out
    assert "half a line, and the rest" in both.out
    both.stop()
    assert both.ends() == 0


def test_their_lines_as_json(pair: Callable[..., Pair]) -> None:
    both = pair(mode="json").up()
    both.stop()
    assert both.ends() == 0
    lines = [json.loads(line) for line in (both.out + both.err).splitlines()]
    agents = [line for line in lines if line["source"] == "worker"]
    assert {line["level"] for line in agents} == {"info", "warning"}
    assert "as JSON" in {line["message"] for line in agents}
    assert {line["source"] for line in lines} == {"worker", "comfyui", "comfyrun"}


def test_an_agent_that_is_killed_is_started_again_and_comfyui_goes_on(pair: Callable[..., Pair]) -> None:
    both = pair().up()
    comfyui = both.comfyui()
    for times in (1, 2, 3):
        os.kill(both.notes("start")[-1][1], signal.SIGKILL)
        both.until(lambda: len(both.notes("start")) == times + 1)  # noqa: B023
    assert both.comfyui() == comfyui
    assert both.alive()
    assert both.err.count("the worker's agent was ended by SIGKILL") == 3
    assert "ComfyUI goes on" in both.err
    both.stop()
    assert both.ends() == 0


@pytest.mark.parametrize("code", [2, 77])
def test_what_a_restart_cannot_help_ends_the_container(pair: Callable[..., Pair], code: int) -> None:
    both = pair(f"exit-{code}")
    assert both.ends() == code
    assert len(both.notes("start")) == 3
    assert f"ended 3 times with exit code {code}" in both.err
    assert "ComfyUI ended" in both.err, "in order"


def test_a_comfyui_that_does_not_end_its_job_ends_the_container_at_once(pair: Callable[..., Pair]) -> None:
    both = pair("exit-75")
    assert both.ends() == 75
    assert len(both.notes("start")) == 1
    assert "cannot end what ComfyUI does: ending the container, to be started again" in both.err


def test_what_may_pass_is_tried_for_ever_with_growing_pauses(pair: Callable[..., Pair]) -> None:
    both = pair("exit-69")
    both.until(lambda: len(both.notes("start")) == 5)
    times = [when for when, _ in both.notes("start")]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert [p >= least for p, least in zip(pauses, (0.1, 0.2, 0.4, 0.4), strict=True)] == [True] * 4
    both.stop()
    assert both.ends() == 0


@pytest.mark.parametrize(("word", "code"), [("exit-5", 5), ("signal-11", 139), ("raise", 1)])
def test_comfyuis_end_is_the_containers_and_its_agent_may_hand_back(
    pair: Callable[..., Pair], word: str, code: int
) -> None:
    both = pair("busy-0.3", comfyui=(word,))
    assert both.ends() == code
    if both.notes("start"):  # it may be over before the agent has begun
        assert both.notes("ended") or not both.notes("drains")
    assert "nobody had asked it to" in both.err


def test_a_comfyui_that_is_killed(pair: Callable[..., Pair]) -> None:
    both = pair("busy-0.3").up()
    os.kill(both.comfyui(), signal.SIGKILL)
    assert both.ends() == 137
    assert len(both.notes("ended")) == 1, "asked to end, it took its 0.3 s"
    assert not both.notes("hurried")


def test_an_agent_that_does_not_end_with_comfyui_is_killed(pair: Callable[..., Pair]) -> None:
    both = pair("deaf", hand_back=0.5).up()
    begin = time.monotonic()
    os.kill(both.comfyui(), signal.SIGKILL)
    assert both.ends() == 137
    assert time.monotonic() - begin < 8
    assert "does not end: killing it" in both.err


def test_a_stop_lets_the_agent_finish_and_then_ends_comfyui(pair: Callable[..., Pair]) -> None:
    both = pair("busy-1.0").up()
    both.stop()
    both.until(lambda: both.notes("drains"))
    time.sleep(0.4)
    assert both.alive(), "a job that runs needs it"
    assert both.ends() == 0
    (drained,), (ended,) = both.notes("drains"), both.notes("ended")
    assert ended[0] - drained[0] >= 1.0
    assert "SIGTERM: the job has 8 s, then stopping ComfyUI, 3 s at most" in both.err
    assert both.err.rstrip().endswith("comfyrun: ComfyUI ended")
    assert len(both.notes("start")) == 1, "nobody started it again"


def test_a_second_signal_hurries(pair: Callable[..., Pair]) -> None:
    both = pair("busy-30").up()
    both.stop()
    both.until(lambda: both.notes("drains"))
    begin = time.monotonic()
    both.stop()
    assert both.ends() in (0, 143)
    assert time.monotonic() - begin < 6
    assert both.notes("hurried"), "it was told, and could still hand back"


def test_an_agent_that_takes_longer_than_its_time(pair: Callable[..., Pair]) -> None:
    both = pair("deaf", drain=0.5, hand_back=0.5).up()
    begin = time.monotonic()
    both.stop()
    assert both.ends() == 0
    assert 1.5 <= time.monotonic() - begin < 10
    assert "does not end: killing it" in both.err


def test_health_is_told_of_the_agent(pair: Callable[..., Pair], tmp_path: Path) -> None:
    both = pair().up()
    told = state.read(Path("/proc"), both.process.pid)
    assert told
    assert told["worker"] == {"id": "one", "state": str(tmp_path / "agent.json"), "timeout": 60}
    both.until((tmp_path / "agent.json").exists)
    assert health._agent(told["worker"]) == "idle"
    both.stop()
    assert both.ends() == 0


def test_health_of_a_silent_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    told = {"state": str(file), "timeout": 30}
    with pytest.raises(UnhealthyError, match="has said nothing yet"):
        health._agent(told)
    file.write_text(json.dumps({"state": "busy", "job": "0123"}))
    assert health._agent(told) == "busy with 0123"
    before = time.time() - 31
    os.utime(file, (before, before))
    with pytest.raises(UnhealthyError, match=r"for 31 s \(WORKER_HEARTBEAT_TIMEOUT is 30 s\)"):
        health._agent(told)


# --- settings, command, folders --------------------------------------------------------------------


def test_settings_of_a_worker() -> None:
    assert worker.read({}, "a1b2c3.local").id == "a1b2c3.local"
    assert worker.read({}, "_ _").id == "worker"
    found = worker.read({"WORKER_ID": "worker-1", "WORKER_DRAIN_TIMEOUT": "5m"}, "x")
    assert (found.id, found.drain, found.heartbeat) == ("worker-1", 300, 60)
    with pytest.raises(ConfigError) as error:
        worker.read({"WORKER_ID": "a/b", "WORKER_DRAIN_TIMEOUT": "soon"}, "x")
    assert len(error.value.messages) == 2


@pytest.mark.parametrize("version", [PINNED, FALLBACK])
def test_a_workers_comfyui_listens_on_loopback_and_writes_to_a_folder_of_its_own(version: str) -> None:
    found = plan(
        image=image("cpu", version),
        table=table(version),
        layout=Layout(),
        environ={"WORKER_ID": "one"},
        arguments=["--output-directory", "/mine"],
        machine=MACHINE,
        role=worker.role(worker.Worker(id="one")),
    )
    assert found.listen == ("127.0.0.1",)
    words = f"{' '.join(found.argv)} "
    for expected in (
        "--input-directory /cache/worker/one/input ",
        "--temp-directory /cache/worker/one ",
        "--user-directory /cache/worker/one/user ",
        "--database-url sqlite:////cache/worker/one/user/comfyui.db ",
        "--listen 127.0.0.1 ",
        "--base-directory /data ",
        "--output-directory /mine ",
    ):
        assert expected in words
    written = [d.path for d in found.directories if d.needs == "write"]
    assert written[:4] == ["/mine", "/cache/worker/one", "/cache/worker/one/user", "/cache"]
    assert not [path for path in written if path.startswith("/data")], "its models may be mounted read-only"
    agent = worker.companion(found, worker.Worker(id="one"), Layout())
    assert agent.environment["COMFYWORK_OUTPUT"] == "/mine", "where ComfyUI really writes"
    assert agent.environment["COMFYWORK_INPUT"] == "/cache/worker/one/input"


@pytest.fixture
def workshop(layout: Layout, tmp_path: Path) -> Layout:
    """An image with /opt/work, whose comfywork says what it was started with."""
    script = tmp_path / "bin" / "comfywork"
    script.parent.mkdir()
    script.write_text((Path(comfyrun.__file__).parents[1] / "bin/comfywork").read_text())
    package = tmp_path / "comfywork"
    package.mkdir()
    (package / "__main__.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps({'argv': sys.argv[1:], 'path': sys.path, 'redis': os.environ.get('REDIS_HOST')}))\n"
    )
    return dataclasses.replace(layout, work_python=Path(sys.executable), work=script)


@pytest.mark.parametrize("verb", [*cli.HANDED, "check"])
def test_verbs_of_the_queue_are_handed_over(workshop: Layout, tmp_path: Path, verb: str) -> None:
    """To a Python that sees the queue's libraries and this package, whatever PYTHONPATH says."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "comfyrun.env").write_text("REDIS_HOST=queue.example\n")
    words = [verb, "--queue", "--json"] if verb == "check" else [verb, "--json", "x y"]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(comfyrun.__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom comfyrun import cli\nfrom comfyrun.layout import Layout\n"
        f"layout = Layout(etc=Path({str(workshop.etc)!r}), work_python=Path({sys.executable!r}), work=Path({str(workshop.work)!r}))\n"
        f"sys.exit(cli.main({words!r}, {{'COMFY_DATA': {str(data)!r}, 'PYTHONPATH': '/elsewhere'}}, layout))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["argv"] == (["queue", "check", "--json"] if verb == "check" else words)
    assert found["path"][0] == str(tmp_path)
    assert "/elsewhere" not in found["path"]
    assert found["redis"] == "queue.example"


@pytest.mark.parametrize("verb", [*cli.HANDED, "worker"])
def test_an_image_without_the_queues_libraries(
    layout: Layout, capsys: pytest.CaptureFixture[str], verb: str, tmp_path: Path
) -> None:
    bare = dataclasses.replace(layout, work_python=tmp_path / "work/bin/python")
    assert cli.main([verb], {}, bare) == 69
    assert f"comfyrun {verb} needs {tmp_path}/work, and this image has none" in capsys.readouterr().err


def test_print_of_a_worker(workshop: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {
        "WORKER_ID": "worker-7",
        "REDIS_HOST": "queue",
        "REDIS_PASSWORD": "hunter22hunter22",
        "COMFY_STOP_TIMEOUT": "30",
    }
    assert cli.main(["worker", "--print", "--cpu"], environ, workshop) == 0
    out = capsys.readouterr().out
    assert "--listen 127.0.0.1" in out
    assert "WORKER_DRAIN_TIMEOUT=26" in out
    assert "COMFYWORK_SERVER=http://127.0.0.1:8188" in out
    assert "COMFYWORK_OUTPUT=/cache/worker/worker-7/output" in out
    assert "hunter22" not in out
    assert cli.main(["worker", "--print", "--json", "--cpu"], environ, workshop) == 0
    assert json.loads(capsys.readouterr().out)["listen"] == ["127.0.0.1"]


def test_a_worker_is_started_with_its_agent(
    workshop: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyrun import process

    calls: list[Any] = []

    def run(*positional: Any, **named: Any) -> int:
        calls.append((positional, named))
        return 42

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    environ = {
        "COMFY_DATA": str(tmp_path / "data"),
        "COMFY_CACHE": str(tmp_path / "cache"),
        "COMFY_PORT": str(free_port()),
        "HOME": str(tmp_path),
        "WORKER_ID": "one",
        "REDIS_PASSWORD": "hunter22hunter22",
        "S3_SECRET_KEY": "hunter33hunter33",
        "HF_TOKEN": "for ComfyUI",
    }
    stale = tmp_path / "cache/worker/one/output/old.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert cli.main(["worker", "--cpu"], environ, workshop) == 42
    ((argv, environment, *_), named) = calls[0]
    agent = named["companion"]
    assert argv[0] == "/opt/venv/bin/python"
    assert agent.argv == (sys.executable, "-IBu", str(workshop.work), "agent")
    assert agent.environment["REDIS_PASSWORD"] == "hunter22hunter22"
    assert not {"REDIS_PASSWORD", "S3_SECRET_KEY"} & environment.keys(), "custom nodes run in there"
    assert environment["HF_TOKEN"] == "for ComfyUI"
    assert named["told"]["worker"]["state"] == str(tmp_path / "cache/worker/one/agent.json")
    assert (agent.drain, agent.comfyui) == (4, 3)
    assert not stale.exists(), "a new ComfyUI knows nothing of it"
    assert stale.parent.is_dir()


# --- the folder of a worker --------------------------------------------------------------------------


def test_two_workers_of_one_id_and_what_dead_ones_left(tmp_path: Path) -> None:
    cache = str(tmp_path)
    for name in ("dead", "one"):
        (tmp_path / "worker" / name / "output").mkdir(parents=True)
        (tmp_path / "worker" / name / "output" / "x.png").touch()
    first = scratch.claim(cache, "one")
    try:
        assert sorted(p.name for p in (tmp_path / "worker").iterdir()) == ["one", "one.lock"]
        assert list((tmp_path / "worker/one/output").iterdir()) == []
        with pytest.raises(MachineError, match="another worker with the id one uses"):
            _in_another_process(cache, "one")
        (tmp_path / "worker/one/output/mine.png").touch()
        _in_another_process(cache, "two")
        assert (tmp_path / "worker/one/output/mine.png").exists(), "somebody holds it"
    finally:
        os.close(first)
    os.close(scratch.claim(cache, "one"))


def _in_another_process(cache: str, name: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(comfyrun.__file__).parents[1])!r})\n"
        "from comfyrun import scratch\nfrom comfyrun.errors import MachineError\n"
        f"scratch._PATIENCE = 0.1\ntry: scratch.claim({cache!r}, {name!r})\n"
        "except MachineError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(done.stderr)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "worker").write_text("a file")
    with pytest.raises(MachineError, match="cannot be used"):
        scratch.claim(str(tmp_path), "one")
