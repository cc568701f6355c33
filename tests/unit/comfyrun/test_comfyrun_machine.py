"""Directories, ports and health: what a start finds on the machine."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from syntheticui import STRANGER

from comfyrun import cli, directories, health, port
from comfyrun.errors import MachineError
from comfyrun.health import Server, UnhealthyError
from comfyrun.launch import Directory
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator


def folder(path: Path, needs: str = "write") -> Directory:
    return Directory(path=str(path), purpose="test", needs=needs)  # type: ignore[arg-type]


def mend(*wanted: Directory) -> str:
    with pytest.raises(MachineError) as caught:
        directories.prepare(wanted, STRANGER)
    assert caught.value.exit_code == 69
    return str(caught.value)


def fail_with(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def try_writing(_path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directories, "_try_writing", try_writing)


def test_directories_are_made_and_left_empty(tmp_path: Path) -> None:
    directories.prepare([folder(tmp_path / "a" / "b"), folder(tmp_path / "c", "exist")], STRANGER)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert (tmp_path / "c").is_dir()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    directories.prepare([folder(tmp_path)], STRANGER)
    assert (tmp_path / "model").read_text() == "x"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_not_writable_names_owner_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_with(monkeypatch, number)
    message = mend(folder(tmp_path))
    status = tmp_path.stat()
    assert f"UID 4321:4321 may not write to {tmp_path}" in message
    assert f"belongs to UID {status.st_uid}, GID {status.st_gid}" in message
    assert "chown -R 4321:4321" in message
    assert f"--user {status.st_uid}:{status.st_gid}" in message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "is read-only: mount a writable volume"),
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_other_troubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    fail_with(monkeypatch, number)
    assert words in mend(folder(tmp_path))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert f"{tmp_path / 'x'} is a file" in mend(folder(tmp_path / "x" / "y"))
    assert f"{tmp_path / 'x'} is a file" in mend(folder(tmp_path / "x"))


def test_a_path_no_system_takes(tmp_path: Path) -> None:
    assert "cannot be used" in mend(folder(tmp_path / "a\0b"))
    assert "cannot be used" in mend(folder(tmp_path / ("x" * 300)))


def test_unreadable_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert "may not read" in mend(folder(tmp_path, "exist"))


def test_one_bad_volume_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(self: Path, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "no", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert len(mend(folder(tmp_path / "a"), folder(tmp_path / "b" / "c")).splitlines()) == 1


def test_a_leftover_of_another_container_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".comfyrun-{os.getpid()}").write_text("")
    directories.prepare([folder(tmp_path)], STRANGER)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_really_protected_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert "may not write" in mend(folder(tmp_path / "x"))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "is in use"),
        (errno.EACCES, "choose one from 1024 up"),
        (errno.EADDRNOTAVAIL, "has no such address"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_ports(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def bind(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(port, "_bind", bind)
    with pytest.raises(MachineError, match=words):
        port.check(["127.0.0.1"], 8188)


def test_a_name_that_is_none() -> None:
    with pytest.raises(MachineError, match="no such address here"):
        port.check(["x" * 70 + ".invalid"], 8188)


def test_a_free_port() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        number = server.getsockname()[1]
    port.check(["127.0.0.1", "localhost"], number)


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    replies = {
        "/system_stats": (200, b"{}"),
        "/prompt": (200, json.dumps({"exec_info": {"queue_remaining": 2}}).encode()),
    }
    monkeypatch.setattr(Answers, "replies", replies)
    httpd = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd.server_address[1]
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def proc(tmp_path: Path, server: int) -> Path:
    """A /proc in which tini, a shell and ComfyUI run."""
    lines = {
        "1": ["/usr/bin/tini", "--", "comfyrun"],
        "7": ["sh"],
        "9": ["/opt/venv/bin/python", "/opt/comfyui/main.py", "--listen", "0.0.0.0", "--port", str(server)],
    }
    for process, argv in lines.items():
        (tmp_path / process).mkdir()
        (tmp_path / process / "cmdline").write_bytes("\0".join([*argv, ""]).encode())
    (tmp_path / "8").mkdir()  # it has just ended
    (tmp_path / "self").mkdir()
    return tmp_path


def test_alive_and_ready(proc: Path, server: int) -> None:
    assert health.check(Layout(), ready=False, proc=proc) == f"alive on port {server}"
    assert health.check(Layout(), ready=True, proc=proc) == f"ready on port {server}, 2 in the queue"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((500, b"{}"), "answers 500"),
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b"[" * 100_000), "the answer is not JSON"),
        ((200, b'{"exec_info": {}}'), "has no exec_info.queue_remaining"),
    ],
)
def test_wrong_answers(proc: Path, reply: tuple[int, bytes], words: str) -> None:
    Answers.replies["/prompt"] = reply
    with pytest.raises(UnhealthyError, match=words) as caught:
        health.check(Layout(), ready=True, proc=proc)
    assert caught.value.exit_code == 1


def test_a_dripping_answer_is_bounded(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "drip", True)
    monkeypatch.setattr(health, "TIMEOUT", 1)
    begin = time.monotonic()
    with pytest.raises(UnhealthyError, match="no answer in 1 s"):
        health.check(Layout(), ready=False, proc=proc)
    assert time.monotonic() - begin < 3


def test_a_silent_port_is_bounded(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TIMEOUT", 1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        argv = ["/opt/venv/bin/python", "/opt/comfyui/main.py", f"--port={mute.getsockname()[1]}"]
        (proc / "9" / "cmdline").write_bytes("\0".join(argv).encode())
        with pytest.raises(UnhealthyError, match="no answer in 1 s"):
            health.check(Layout(), ready=False, proc=proc)


def test_nobody_listens(proc: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        argv = ["/opt/venv/bin/python", "/opt/comfyui/main.py", "--port", str(closed.getsockname()[1])]
    (proc / "9" / "cmdline").write_bytes("\0".join(argv).encode())
    with pytest.raises(UnhealthyError, match="Connection refused"):
        health.check(Layout(), ready=False, proc=proc)


def test_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnhealthyError, match="is not running"):
        health.check(Layout(), ready=False, proc=tmp_path)
    with pytest.raises(UnhealthyError, match="cannot be read"):
        health.check(Layout(), ready=False, proc=tmp_path / "none")
    assert cli.main(["health"], {}, Layout(code=tmp_path)) == 1
    assert capsys.readouterr().err == "comfyrun: ComfyUI is not running in this container\n"


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
    assert health.parse(["python", "/opt/comfyui/main.py", *arguments]) == server
