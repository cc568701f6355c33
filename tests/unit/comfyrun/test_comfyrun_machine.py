"""Directories and ports: what a start finds on the machine."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from syntheticui import STRANGER

import comfyrun
from comfyrun import directories, port, tls
from comfyrun.errors import MachineError
from comfyrun.launch import Directory, File


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
    assert (f"--user {status.st_uid}:{status.st_gid}" in message) == (status.st_uid != 0)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder away")
def test_the_owner_is_somebody_to_run_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, 1234, 1235)
    fail_with(monkeypatch, errno.EACCES)
    assert mend(folder(tmp_path)).endswith("or run as the owner: --user 1234:1235")


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
    with pytest.raises(MachineError, match="this container has no such address"):
        port.check(["x" * 70 + ".invalid"], 8188)


def test_a_free_port() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        number = server.getsockname()[1]
    port.check(["127.0.0.1", "localhost"], number)


def test_an_address_that_is_not_there() -> None:
    with pytest.raises(MachineError, match=r"has no such address\. 0\.0\.0\.0 listens on all"):
        port.check(["192.0.2.1"], 8188)


# --- what somebody names ------------------------------------------------------------------------


def test_a_named_folder_is_not_made(tmp_path: Path) -> None:
    there = Directory(path=str(tmp_path / "x"), purpose="output", needs="write", given="command line")
    assert mend(there).startswith(f"{tmp_path}/x (command line) is not there, and no empty folder is made")
    (tmp_path / "x").write_text("")
    assert mend(there) == f"{tmp_path}/x is a file, and a directory is needed at {tmp_path}/x"


# --- https --------------------------------------------------------------------------------------

OPENSSL = shutil.which("openssl")


def https(certificate: Path, key: Path) -> tuple[File, File]:
    return (
        File(path=str(certificate), purpose=tls.PURPOSE, origin="COMFY_TLS_CERT"),
        File(path=str(key), purpose=tls.PURPOSE, origin="COMFY_TLS_KEY"),
    )


def make(folder: Path, *options: str) -> tuple[Path, Path]:
    assert OPENSSL
    folder.mkdir()
    names = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-subj", "/CN=x"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([OPENSSL, "req", "-x509", *kind, *names, *options], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_no_https_is_no_matter(tmp_path: Path) -> None:
    tls.check([File(path=str(tmp_path / "x.yaml"), purpose="more models", origin="COMFY_MODELS")])


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("garbage")
    with pytest.raises(MachineError, match=r"both have to be PEM"):
        tls.check(https(tmp_path / "x", tmp_path / "x"))
    with pytest.raises(MachineError, match=r"COMFY_TLS_KEY\) cannot be read: No such file"):
        tls.check(https(tmp_path / "y", tmp_path / "x"))


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl, to make certificates")
def test_certificates(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "-nodes"), make(tmp_path / "other", "-nodes")
    tls.check(https(*one))
    with pytest.raises(MachineError, match="do not belong together"):
        tls.check(https(one[0], other[1]))
    with pytest.raises(MachineError, match=r"is locked with a passphrase, which ComfyUI cannot be told"):
        tls.check(https(*make(tmp_path / "locked", "-passout", "pass:abcd")))


# --- other users' folders -----------------------------------------------------------------------

AS_ANOTHER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from comfyrun import directories, overlay
from comfyrun.errors import MachineError
from comfyrun.launch import Directory, Machine
from comfyrun.layout import Layout
data = sys.argv[2]
place = overlay.Place(layout=Layout(), data=data, cache="/cache", torch="2")
there = Directory(path=f"{data}/custom_nodes/theirs/out", purpose="output", needs="write", given="command line")
os.setgid(4321), os.setuid(4321)
assert [p.name for p in place.folders()] == ["theirs"]
assert overlay.note(place) == ""
try:
    directories.prepare([there], Machine(uid=4321, gid=4321, user=None, home_writable=False))
except MachineError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to run as somebody else")
def test_a_folder_of_somebody_else_is_no_traceback() -> None:
    """pathlib raises for what it may not look at (until Python 3.14)."""
    with tempfile.TemporaryDirectory() as data:  # pytest's own is closed to others
        Path(data).chmod(0o755)
        closed = Path(data, "custom_nodes", "theirs")
        closed.mkdir(parents=True)
        closed.chmod(0o700)
        package = str(Path(comfyrun.__file__).parents[1])
        command = [sys.executable, "-ISB", "-c", AS_ANOTHER, package, data]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "theirs/out (command line) is not there" in ended.stdout
