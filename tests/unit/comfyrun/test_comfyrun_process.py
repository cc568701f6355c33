"""comfyrun as the parent of a server: how it stops it, what it makes of its end, what it passes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import comfyrun
from comfyrun import client, ends, process, state
from comfyrun.errors import MachineError
from comfyrun.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE = Path(__file__).with_name("fakeui.py")
PATIENCE = 20  # seconds, on a busy machine

# comfyrun's own start, less what finds out what to start.
PARENT = f"""
import os, sys
sys.path.insert(0, {str(Path(comfyrun.__file__).parent.parent)!r})
from comfyrun import client, process
from comfyrun.logs import Log
port, mode, timeout, *argv = sys.argv[1:]
server = client.Server(host="127.0.0.1", port=int(port), tls=False)
log = Log(mode, hidden=("hunter22hunter22",))
sys.exit(process.run(argv, dict(os.environ), server, log, float(timeout)))
"""


@dataclass
class Supervised:
    process: subprocess.Popen[str]
    port: int
    out: Path
    err: Path
    begun: float = field(default_factory=time.monotonic)

    def server(self) -> client.Server:
        return client.Server(host="127.0.0.1", port=self.port, tls=False)

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, self.err.read_text()
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)

    def up(self) -> Supervised:
        def ask() -> bool:
            with contextlib.suppress(client.NoAnswerError):
                client.get(self.server(), "/system_stats", time.monotonic() + 1)
                return True
            return False

        self.until(ask)
        return self

    def post(self, path: str, value: object) -> None:
        client.post(self.server(), path, value, time.monotonic() + PATIENCE)

    def said(self, words: str) -> bool:
        return words in self.err.read_text()

    def tells(self) -> dict[str, Any]:
        return state.read(Path("/proc"), self.process.pid) or {}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        self.begun = time.monotonic()
        self.process.send_signal(number)
        return self.begun

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what was said on stderr."""
        code = self.process.wait(PATIENCE)
        return code, self.err.read_text()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


Start = "Callable[..., Supervised]"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts comfyrun over the fake ComfyUI, with words for how that one behaves."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, timeout: float = 8, mode: str = "text") -> Supervised:
        import socket

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        out, err = tmp_path / "out", tmp_path / "err"
        command = [sys.executable, "-IS", "-c", PARENT, str(port), mode, str(timeout)]
        command += [sys.executable, "-S", str(FAKE), str(port), *words]
        with out.open("w") as o, err.open("w") as e:
            process = subprocess.Popen(
                command,
                stdout=o,
                stderr=e,
                text=True,
                env={**os.environ, "HF_TOKEN": "hunter22hunter22"},
                start_new_session=True,
            )
        started.append(process)
        return Supervised(process, port, out, err)

    yield run
    for process_ in started:
        if process_.poll() is None:
            process_.kill()
            process_.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_server_stops_at_once(run: Any, number: signal.Signals) -> None:
    it = run(timeout=60).up()
    it.stop(number)
    code, said = it.ended()
    assert code == 0, said
    assert f"comfyrun: {number.name}: stopping ComfyUI, 60 s at most" in said
    assert "Stopped server" in said  # ComfyUI's own orderly end
    assert said.endswith("comfyrun: ComfyUI ended\n")
    assert it.seconds < 15


def test_a_short_job_is_finished_and_what_waits_is_dropped(run: Any) -> None:
    it = run().up()
    for _ in range(3):
        it.post("/prompt", {"seconds": 0.7})
    it.until(lambda: it.said("got prompt"))
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert said.count("the job is whole") == 1
    assert "2 more in the queue will not be done" in said
    assert "interrupt" not in said


def test_a_long_job_is_interrupted(run: Any) -> None:
    it = run(timeout=2).up()
    it.post("/prompt", {"seconds": 30})
    it.until(lambda: it.said("got prompt"))
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert "the running job takes too long for this stop: interrupting it" in said
    assert "Processing interrupted" in said
    assert "Stopped server" in said


def test_a_job_that_hears_nothing_does_not_hold_up_the_end(run: Any) -> None:
    it = run(timeout=1.5).up()
    it.post("/prompt", {"seconds": 30, "deaf": True})
    it.until(lambda: it.said("got prompt"))
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert "Stopped server" in said
    assert it.seconds < 10


def test_a_server_that_hangs_is_still_asked(run: Any) -> None:
    it = run("hang", timeout=3).up()
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert it.seconds < 10


def test_one_that_is_starting_has_nothing_to_lose(run: Any) -> None:
    it = run("slow-start", timeout=60)
    it.until(lambda: it.said("starting"))
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert "Traceback" not in said
    assert it.seconds < 15


def test_one_deaf_to_sigint_gets_sigterm(run: Any) -> None:
    it = run("deaf-int", timeout=1).up()
    it.stop()
    code, said = it.ended()
    assert code == 128 + signal.SIGTERM
    assert said.endswith("comfyrun: ComfyUI had to be forced: it was ended by SIGTERM\n")


def test_one_deaf_to_everything_is_killed(run: Any) -> None:
    it = run("deaf-int", "deaf-term", timeout=1).up()
    it.stop()
    code, said = it.ended()
    assert code == 128 + signal.SIGKILL
    assert "comfyrun: ComfyUI does not end: killing it" in said
    assert it.seconds < 10


def test_no_time_at_all(run: Any) -> None:
    it = run("deaf-int", "deaf-term", timeout=0).up()
    it.stop()
    assert it.ended()[0] == 128 + signal.SIGKILL
    assert it.seconds < 10


def test_a_second_signal_hurries(run: Any) -> None:
    it = run("deaf-int", timeout=60).up()
    it.post("/prompt", {"seconds": 30})
    it.until(lambda: it.said("got prompt"))
    it.stop(signal.SIGINT)
    it.until(lambda: it.said("a job is running"))
    it.process.send_signal(signal.SIGINT)
    assert it.ended()[0] == 128 + signal.SIGTERM
    assert it.seconds < 10


def test_an_untidy_end_keeps_its_code(run: Any) -> None:
    it = run("untidy").up()
    it.stop()
    code, said = it.ended()
    assert code == 3
    assert said.endswith("comfyrun: ComfyUI ended with exit code 3\n")


@pytest.mark.parametrize(
    ("word", "how"), [("lingers", "was ended by SIGTERM"), ("aborts", "was ended by SIGABRT")]
)
def test_what_happens_after_its_orderly_end_is_no_failure(run: Any, word: str, how: str) -> None:
    """Seen with the real one: a torch that aborts at the very end, or takes ten seconds to be taken apart."""
    it = run(word, timeout=1.5).up()
    it.stop()
    code, said = it.ended()
    assert code == 0, said
    assert said.endswith(f"comfyrun: ComfyUI had stopped, and what was left of it {how}\n")


@pytest.mark.parametrize("code", [0, 1, 2, 255])
def test_its_exit_code_is_passed_on(run: Any, code: int) -> None:
    ended, said = run(f"exit-{code}").ended()
    assert ended == code
    assert f"comfyrun: ComfyUI ended with exit code {code} after " in said
    assert ("its last words: [ERROR] it cannot be" in said) == bool(code)


def test_a_crash_ends_with_the_exception(run: Any) -> None:
    code, said = run("raise").ended()
    assert code == 1
    assert said.count("Traceback") == 1
    assert "its last words: ModuleNotFoundError: No module named 'what_a_node_needs'" in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "somebody killed it"),
        (signal.SIGSEGV, "native code crashed"),
        (signal.SIGABRT, "COMFY_NODES=off"),
        (signal.SIGILL, "instructions that this CPU has not"),
    ],
)
def test_a_death_by_signal_is_explained(run: Any, number: signal.Signals, words: str) -> None:
    code, said = run(f"signal-{int(number)}").ended()
    assert code == 128 + number
    assert re.search(rf"ComfyUI was ended by {number.name} after \d+ s, and nobody had asked it to", said)
    assert words in said


def test_what_it_leaves_behind_holds_nothing_up(run: Any) -> None:
    it = run("leave-a-child", "exit-4")
    assert it.ended()[0] == 4
    assert it.seconds < 10


def test_text_passes_unchanged(run: Any) -> None:
    it = run().up()
    it.stop()
    it.ended()
    assert it.out.read_text() == "half a line, and the rest\n"
    assert "\x1b[32m[INFO]\x1b[0m Starting server\n" in it.err.read_text()


def test_half_a_line_is_passed_on_before_its_end(run: Any) -> None:
    it = run("hang").up()
    it.until(lambda: "half a line" in it.out.read_text())


def test_every_line_as_json(run: Any) -> None:
    it = run(mode="json").up()
    it.post("/prompt", {"log": [" 10%|#\r 50%|#####\r100%|##########", "[ERROR] Ü\udcff"]})
    it.until(lambda: it.said("the job is whole"))
    it.stop()
    it.ended()
    lines = [json.loads(x) for x in it.err.read_text().splitlines()]
    by_source = {(x["source"], x["level"], x["message"]) for x in lines}
    assert ("comfyui", "info", "Starting server") in by_source
    assert ("comfyui", "info", "100%|##########") in by_source
    assert ("comfyui", "info", "Stopped server") in by_source
    assert ("comfyrun", "info", "ComfyUI ended") in by_source
    assert [json.loads(x)["message"] for x in it.out.read_text().splitlines()] == [
        "half a line, and the rest"
    ]
    assert all(x["time"].endswith("Z") for x in lines)


def test_a_crash_as_json_has_its_last_lines(run: Any) -> None:
    _, said = run("raise", mode="json").ended()
    last = json.loads(said.splitlines()[-1])
    assert last["exit_code"] == 1
    assert last["level"] == "error"
    assert last["last_lines"][-1].startswith("ModuleNotFoundError")


@pytest.mark.parametrize("mode", ["text", "json"])
def test_secrets_of_the_environment_do_not_pass(run: Any, mode: str) -> None:
    it = run("secret", mode=mode).up()
    it.stop()
    _, said = it.ended()
    assert "logged in with ***" in said
    assert "hunter22" not in said + it.out.read_text()


def test_fallbacks_are_counted_told_and_summed_up(run: Any) -> None:
    it = run().up()
    sage = "[ERROR] Error running sage attention: no, using pytorch attention instead."
    flash = "[WARNING] Flash Attention failed, using default SDPA: no"
    it.post("/prompt", {"log": [sage, sage, flash]})
    it.until(lambda: it.tells().get("attention_fallbacks") == {"sage": 2, "flash": 1})
    it.stop()
    _, said = it.ended()
    assert said.count("comfyrun: sage attention failed, and PyTorch's does its work") == 1
    assert "comfyrun: attention fell back to PyTorch's this often: flash 1, sage 2" in said


LOST = "[ERROR] !!! Exception during processing !!! CUDA error: an illegal memory access was encountered"


def test_a_lost_gpu_context_ends_the_container(run: Any) -> None:
    it = run().up()
    it.post("/prompt", {"log": [LOST]})
    it.until(lambda: it.said("Prompt executed"))
    assert it.tells()["broken"] == ""
    it.begun = time.monotonic()
    it.post("/prompt", {"log": [LOST]})
    code, said = it.ended()
    assert code == 75
    assert "ComfyUI can do no more jobs (CUDA error: an illegal memory access was encountered" in said
    assert it.seconds < 10


def test_a_dead_worker_ends_the_container(run: Any) -> None:
    it = run("deaf-int", "deaf-term").up()
    it.post("/prompt", {"log": [LOST], "die": "CUDA error: an illegal memory access was encountered"})
    code, said = it.ended()
    assert code == 75
    assert "and its worker has ended" in said
    assert said.index("RuntimeError: CUDA error") < said.index("can do no more jobs")


def test_a_program_that_is_not_there() -> None:
    server = client.Server(host="127.0.0.1", port=1, tls=False)
    with pytest.raises(MachineError, match="/no/python cannot be started"):
        process.run(["/no/python"], {}, server, Log())


def test_nobody_reads_the_log(tmp_path: Path) -> None:
    """`docker run … | head`: the server goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    server = client.Server(host="127.0.0.1", port=1, tls=False)
    code = "import sys; print('x' * 100000); sys.exit(5)"
    said = tmp_path / "err"
    with said.open("w") as err:
        assert process.run([sys.executable, "-c", code], {}, server, Log(out=writer, err=err.fileno())) == 5
    os.close(writer)


def test_what_the_kernel_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "its memory limit was reached" in ends.likely(-9, oom=True)
    assert ends.described(-200) == "was ended by signal 200"
    monkeypatch.setattr(ends, "CGROUP", tmp_path)
    assert ends.oom_kills() == 0
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert ends.oom_kills() == 2
