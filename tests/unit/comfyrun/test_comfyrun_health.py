"""`comfyrun health`: what it asks of the server, of the command line it runs with, and of its parent."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from comfyrun import cli, client, health, state
from comfyrun.client import Server
from comfyrun.health import UnhealthyError
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

GPU = {"devices": [{"name": "cuda:0 NVIDIA H100", "type": "cuda", "index": 0}]}
CPU = {"devices": [{"name": "cpu", "type": "cpu", "index": None}]}


class Answers(BaseHTTPRequestHandler):
    """A server that says what a test wants."""

    replies: ClassVar[dict[str, tuple[int, bytes]]] = {}
    drip: ClassVar[bool] = False

    def do_GET(self) -> None:
        status, body = self.replies.get(self.path, (404, b"{}"))
        self.send_response(status)
        self.end_headers()
        if not self.drip:
            self.wfile.write(body)
            return
        try:
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            pass

    def log_message(self, *_arguments: object) -> None:
        pass


def answer(path: str, value: object, status: int = 200) -> None:
    Answers.replies[path] = (status, value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.fixture
def httpd(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    monkeypatch.setattr(Answers, "replies", {})
    answer("/system_stats", GPU)
    answer("/prompt", {"exec_info": {"queue_remaining": 2}})
    httpd = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def port(httpd: HTTPServer) -> int:
    return int(httpd.server_address[1])


@pytest.fixture
def proc(tmp_path: Path, port: int) -> Path:
    """A /proc in which tini, a shell and ComfyUI run."""
    lines = {
        "1": ["/usr/bin/tini", "--", "comfyrun"],
        "7": ["sh"],
        "9": ["/opt/venv/bin/python", "/opt/comfyui/main.py", "--listen", "0.0.0.0", "--port", str(port)],
    }
    for process, argv in lines.items():
        (tmp_path / process).mkdir()
        (tmp_path / process / "cmdline").write_bytes("\0".join([*argv, ""]).encode())
        (tmp_path / process / "stat").write_text(f"{process} (a (strange) name) S 7 1 1 0\n")
    (tmp_path / "8").mkdir()  # it has just ended
    (tmp_path / "self").mkdir()
    return tmp_path


def start(proc: Path, *flags: str) -> None:
    argv = ["/opt/venv/bin/python", "/opt/comfyui/main.py", *flags]
    (proc / "9" / "cmdline").write_bytes("\0".join([*argv, ""]).encode())


def test_alive_and_ready(layout: Layout, proc: Path, port: int) -> None:
    alive = health.check(layout, ready=False, proc=proc)
    assert alive.text == f"alive on port {port}; runs on cuda"
    ready = health.check(layout, ready=True, proc=proc)
    assert ready.text == f"ready on port {port}; runs on cuda; 2 in the queue"
    assert json.loads(ready.as_json()) == {
        "schema": 1,
        "healthy": True,
        "ready": True,
        "port": port,
        "device": "cuda",
        "device_name": "cuda:0 NVIDIA H100",
        "queue": 2,
        "attention_fallbacks": None,
    }


@pytest.mark.parametrize(
    ("stats", "flags", "words"),
    [
        (CPU, (), "ComfyUI runs on cpu, and was started to run on cuda"),
        (GPU, ("--cpu",), "ComfyUI runs on cuda, and was started to run on cpu"),
        ({"devices": []}, (), "ComfyUI runs on an unknown device, and was started to run on cuda"),
        ({}, (), "the answer names no devices"),
    ],
)
def test_it_runs_where_it_was_told_to(
    layout: Layout, proc: Path, port: int, stats: object, flags: tuple[str, ...], words: str
) -> None:
    answer("/system_stats", stats)
    start(proc, "--port", str(port), *flags)
    with pytest.raises(UnhealthyError, match=words):
        health.check(layout, ready=False, proc=proc)


def test_on_the_cpu_as_asked(layout: Layout, proc: Path, port: int) -> None:
    answer("/system_stats", CPU)
    start(proc, "--port", str(port), "--cpu")
    assert health.check(layout, ready=False, proc=proc).device == "cpu"


@pytest.mark.parametrize("profile", ['{"cuda": null}', "no JSON", "[]", None])
def test_an_image_that_asks_for_nothing(tmp_path: Path, proc: Path, profile: str | None) -> None:
    if profile:
        (tmp_path / "profile.json").write_text(profile)
    answer("/system_stats", CPU)
    assert health.check(Layout(etc=tmp_path), ready=False, proc=proc).device == "cpu"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((500, b"{}"), "answers 500"),
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b"[" * 100_000), "the answer is not JSON"),
        ((200, b'{"exec_info": {}}'), "has no exec_info.queue_remaining"),
    ],
)
def test_wrong_answers(layout: Layout, proc: Path, reply: tuple[int, bytes], words: str) -> None:
    Answers.replies["/prompt"] = reply
    with pytest.raises(UnhealthyError, match=words) as caught:
        health.check(layout, ready=True, proc=proc)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("raw", [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.0\r\n\r\n", b"\0" * 50])
def test_what_is_not_http(layout: Layout, proc: Path, raw: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as strange:
        start(proc, f"--port={strange.getsockname()[1]}")

        def reply() -> None:
            connection, _ = strange.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(raw)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(UnhealthyError, match="the answer is not HTTP"):
            health.check(layout, ready=False, proc=proc)
        thread.join()


def test_a_dripping_answer_is_bounded(layout: Layout, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "drip", True)
    monkeypatch.setattr(health, "TIMEOUT", 1)
    begin = time.monotonic()
    with pytest.raises(UnhealthyError, match="no answer in 1 s"):
        health.check(layout, ready=False, proc=proc)
    assert time.monotonic() - begin < 3


def test_a_silent_port_is_bounded(layout: Layout, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start(proc, f"--port={mute.getsockname()[1]}")
        with pytest.raises(UnhealthyError, match="no answer in 1 s"):
            health.check(layout, ready=False, proc=proc)


@pytest.mark.parametrize("port", ["", "99999"])
def test_nobody_listens(layout: Layout, proc: Path, port: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        start(proc, "--port", port or str(closed.getsockname()[1]))
    with pytest.raises(UnhealthyError, match=r"GET /system_stats on port \d+: "):
        health.check(layout, ready=False, proc=proc)


def test_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnhealthyError, match="is not running"):
        health.check(Layout(), ready=False, proc=tmp_path)
    with pytest.raises(UnhealthyError, match="cannot be read"):
        health.check(Layout(), ready=False, proc=tmp_path / "none")
    assert cli.main(["health"], {}, Layout(code=tmp_path)) == 1
    assert capsys.readouterr().err == "comfyrun: ComfyUI is not running in this container\n"
    assert cli.main(["health", "--json", "--ready"], {}, Layout(code=tmp_path)) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"schema": 1, "healthy": False, "reason": "ComfyUI is not running in this container"}


def test_the_verb(
    layout: Layout, proc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = health.check
    monkeypatch.setattr(health, "check", lambda layout, ready, count: real(layout, ready=ready, proc=proc))
    assert cli.main(["health", "--ready"], {}, layout) == 0
    assert capsys.readouterr().out.startswith("ready on port")
    assert cli.main(["health", "--json"], {}, layout) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is None


# --- what its parent tells ---------------------------------------------------------------------


@pytest.fixture
def told(layout: Layout, proc: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks, with a parent that tells this."""

    def told(ready: bool = False, **value: object) -> health.Health:
        monkeypatch.setattr(state, "read", lambda _proc, pid: value if pid == 7 else None)
        return health.check(layout, ready=ready, proc=proc)

    return told


def test_fallbacks_are_shown_and_are_no_illness(told: Any) -> None:
    found = told(attention_fallbacks={"sage": 12, "flash": 1})
    assert found.text.endswith("; attention fell back to PyTorch's: flash 1, sage 12")
    assert json.loads(found.as_json())["attention_fallbacks"] == {"sage": 12, "flash": 1}
    assert "fell back" not in told(attention_fallbacks={}).text


def test_one_that_is_being_stopped_is_alive_but_not_ready(told: Any) -> None:
    assert told(stopping="since SIGTERM").queue is None
    with pytest.raises(UnhealthyError, match="ComfyUI is being stopped: since SIGTERM"):
        told(ready=True, stopping="since SIGTERM")


def test_one_that_can_do_no_more_jobs_is_unhealthy(told: Any) -> None:
    with pytest.raises(UnhealthyError, match="ComfyUI can do no more jobs: CUDA error"):
        told(broken="CUDA error: unspecified launch failure")


def test_state_is_read_from_another_process() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(state.__file__).parent.parent)!r}); from comfyrun import state; "
        "s = state.State(); s.write({'a': 'x' * 3000}); s.write({'a': 1}); print(flush=True); input()"
    )
    command = [sys.executable, "-IS", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        assert state.read(Path("/proc"), other.pid) == {"a": 1}
        other.communicate("\n")
    assert state.read(Path("/proc"), other.pid) is None
    assert state.read(Path("/proc"), os.getpid()) is None


def test_a_system_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def memfd_create(_name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    told = state.State()
    told.write({})
    told.close()


@pytest.mark.parametrize("text", ["", "9", "9 (x) S", "9 (x) S x"])
def test_a_process_without_a_parent(proc: Path, text: str) -> None:
    (proc / "9" / "stat").write_text(text)
    assert [p.parent for p in health.find(Layout(), proc)] == [0]


# --- where it listens --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "server"),
    [
        ([], Server(host="127.0.0.1", port=8188, tls=False)),
        (["--listen"], Server(host="127.0.0.1", port=8188, tls=False)),
        (["--listen", "--port", "9"], Server(host="127.0.0.1", port=9, tls=False)),
        (["--listen", "::", "--port=9"], Server(host="::1", port=9, tls=False)),
        (["--listen", "10.0.0.1,::"], Server(host="10.0.0.1", port=8188, tls=False)),
        (["--port", "1", "--port", "2"], Server(host="127.0.0.1", port=2, tls=False)),
        (["--port", "x", "--tls-keyfile", "/k"], Server(host="127.0.0.1", port=8188, tls=True)),
    ],
)
def test_where_it_listens(arguments: list[str], server: Server) -> None:
    assert health.parse(("python", "/opt/comfyui/main.py", *arguments)) == server


def test_https(httpd: HTTPServer, port: int, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere"]
    try:
        subprocess.run(
            [*command, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
            check=True,
            capture_output=True,
        )
    except OSError:
        pytest.skip("no openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    server = Server(host="127.0.0.1", port=port, tls=True)
    assert client.get(server, "/system_stats", time.monotonic() + 10) == GPU
    with pytest.raises(client.NoAnswerError):
        client.get(Server(host="127.0.0.1", port=port, tls=False), "/system_stats", time.monotonic() + 1)


def test_several_workers_are_all_looked_at(layout: Layout, proc: Path, port: int) -> None:
    """NUM_WORKERS: each has a comfyrun above it, as which this process stands here."""
    told = state.State()
    told.write({"schema": 1})
    try:
        (proc / "9" / "stat").write_text(f"9 (a) S {os.getpid()} 1 1 0\n")
        with pytest.raises(UnhealthyError, match="1 of 2 ComfyUIs run"):
            health.check(layout, ready=False, proc=_with_own(proc), count=2)
        (proc / "11").mkdir()
        argv = ["/opt/venv/bin/python", "/opt/comfyui/main.py", "--port", str(port)]
        (proc / "11" / "cmdline").write_bytes("\0".join([*argv, ""]).encode())
        (proc / "11" / "stat").write_text(f"11 (a) S {os.getpid()} 1 1 0\n")
        found = health.check(layout, ready=True, proc=proc, count=2)
        assert found.queue == 4, "of both"
    finally:
        told.close()


def _with_own(proc: Path) -> Path:
    (proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    return proc
