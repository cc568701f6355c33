"""Directories and ports: what a start finds on the machine."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from syntheticui import STRANGER

from comfyrun import directories, port
from comfyrun.errors import MachineError
from comfyrun.launch import Directory


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
