"""Folders: links planted in them, other users, full disks, mounts, folders that vanish."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfywork.storage import MissingError, Place, Storage, StorageError
from comfywork.storage.volume import VolumeStorage

ROOT = Path(__file__).parents[3]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount or to become another user")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "9_0.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def storage(root: Path) -> Storage:
    return VolumeStorage(root, root, max_output=1 << 30, max_input=1 << 30)


def put(storage: Storage, place: Place) -> None:
    storage.stage(place, io.BytesIO(b"mine"), 4, "")
    storage.publish([place])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_links_in_the_volume_lead_nowhere(
    storage: Storage, root: Path, outside: Path, place: Place, level: int
) -> None:
    parts = place.key.split("/")
    link = root.joinpath(*parts[: level + 1])
    link.parent.mkdir(parents=True, exist_ok=True)
    if level < 2:
        outside.joinpath(*parts[level + 1 : 2]).mkdir(parents=True, exist_ok=True)
        outside.joinpath(*parts[level + 1 :]).write_bytes(b"secret")
    link.symlink_to(outside if level < 2 else outside / "9_0.png")
    with pytest.raises(MissingError):
        storage.open(place.key)
    assert list(storage.keys("")) == []
    storage.stage(place, io.BytesIO(b"mine"), 4, "")
    if level < 2:
        with pytest.raises(StorageError, match="holds a link"):
            storage.publish([place])
    else:
        storage.publish([place])  # the link's place is taken by the object
        assert storage.open(place.key).read() == b"mine"
    storage.delete(place.key)
    assert {path.read_bytes() for path in outside.rglob("*.png")} == {b"secret"}


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_links_in_the_staging_lead_nowhere(
    storage: Storage, root: Path, outside: Path, place: Place, level: int
) -> None:
    parts = place.staged.split("/")
    link = root.joinpath(*parts[: level + 1])
    link.parent.mkdir(parents=True, exist_ok=True)
    outside.joinpath(*parts[level + 1 : 4]).mkdir(parents=True, exist_ok=True)
    if level < 4:
        outside.joinpath(*parts[level + 1 :]).write_bytes(b"secret")
    link.symlink_to(outside if level < 4 else outside / "9_0.png")
    before = sorted(path for path in outside.rglob("*"))
    if level < 4:
        with pytest.raises(StorageError, match="holds a link") as caught:
            storage.stage(place, io.BytesIO(b"mine"), 4, "")
        assert not caught.value.retryable
    storage.discard(place.tenant, place.job, place.token)
    with contextlib.suppress(StorageError):
        storage.sweep_staging(-60)
    assert sorted(path for path in outside.rglob("*")) == before
    assert {path.read_bytes() for path in outside.rglob("*.png")} == {b"secret"}


def test_a_pipe_in_place_of_an_object_stops_nobody(storage: Storage, root: Path, place: Place) -> None:
    (root / place.key).parent.mkdir(parents=True)
    os.mkfifo(root / place.key)
    with pytest.raises(MissingError):
        storage.open(place.key)
    assert list(storage.keys("")) == []


def test_empty_folders_go_and_come_while_others_write(root: Path, place: Place) -> None:
    """One deletes the last object of a folder while another puts one there: neither fails."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        mine = VolumeStorage(root, root, max_output=1 << 20, max_input=1 << 20)
        try:
            while not stop.is_set():
                one = replace(place, name=f"{number}_0.png")
                put(mine, one)
                assert mine.open(one.key).read() == b"mine"
                mine.delete(one.key)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(4)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_is_not_there(tmp_path: Path, place: Place) -> None:
    storage = VolumeStorage(tmp_path / "gone", tmp_path / "gone", max_output=9, max_input=9)
    for act in (storage.check, storage.now, lambda: storage.stage(place, io.BytesIO(b""), 0, "")):
        with pytest.raises(StorageError, match="is not there; mount the volume") as caught:
            act()
        assert not caught.value.retryable


def test_cut_while_it_is_read(storage: Storage, root: Path, place: Place) -> None:
    put(storage, place)
    with storage.open(place.key) as opened:
        os.truncate(root / place.key, 2)
        with pytest.raises(StorageError, match="2 bytes early"):
            opened.read()


@pytest.fixture
def tiny(root: Path) -> Iterator[Path]:
    """A volume of one megabyte."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode()[:200]}")
    yield root
    subprocess.run(["umount", "--lazy", root], check=True)


@NEEDS_ROOT
@pytest.mark.parametrize("size", [4 << 20, None])
def test_a_full_disk_is_told_and_keeps_nothing(
    tiny: Path, storage: Storage, place: Place, size: int | None
) -> None:
    other = replace(place, name="1_0.png")
    put(storage, other)
    with pytest.raises(StorageError, match=r"is full .* are free") as caught:
        storage.stage(place, io.BytesIO(bytes(4 << 20)), size, "")
    assert caught.value.retryable
    assert storage.sweep_staging(-60, dry_run=True).objects == 0
    put(storage, place)
    assert [found.size for found in storage.keys("")] == [4, 4]


@NEEDS_ROOT
def test_a_mount_inside_a_volume_is_told(tiny: Path, tmp_path: Path, place: Place) -> None:
    volume = tmp_path / "outer"
    (volume / place.tenant).mkdir(parents=True)
    subprocess.run(["mount", "--bind", tiny, volume / place.tenant], check=True)
    try:
        storage = VolumeStorage(volume, volume, max_output=9, max_input=9)
        storage.stage(place, io.BytesIO(b"mine"), 4, "")
        with pytest.raises(StorageError, match="holds a mount below it") as caught:
            storage.publish([place])
        assert not caught.value.retryable
    finally:
        subprocess.run(["umount", "--lazy", volume / place.tenant], check=True)


_AS_USER = """
import io, os, sys
from pathlib import Path
from comfywork.storage import Place, StorageError
from comfywork.storage.volume import VolumeStorage
root, act, job, uid, gid = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
os.umask(0o077)
storage = VolumeStorage(root, root, max_output=99, max_input=99)
place = Place(tenant="acme", job=job, token=1, name="9_0.png")
try:
    if act == "stage":
        storage.stage(place, io.BytesIO(b"mine"), 4, "")
    elif act == "publish":
        storage.publish([place])
    elif act == "read":
        assert storage.open(place.key).read() == b"mine"
    else:
        storage.delete(place.key)
        assert not list(storage.keys(""))
except StorageError as error:
    sys.exit(f"{error} retryable={error.retryable}")
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that a group owns, where other users can reach it (pytest's own are closed to them)."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="imgbuild-storage-", dir="/tmp"))
    os.chown(folder, 0, 54321)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def as_user(uid: int, gid: int, root: Path, act: str, job: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _AS_USER, str(root / "volume"), act, job, str(uid), str(gid)],
        env={"PYTHONPATH": str(ROOT / "entrypoint")},
        capture_output=True,
        text=True,
        check=False,
    )


@NEEDS_ROOT
def test_workers_of_different_users_and_one_group_share_it(shared: Path, place: Place) -> None:
    volume = shared / "volume"
    volume.mkdir()
    os.chown(volume, 0, 54321)
    volume.chmod(0o2775)
    for uid, act in ((20001, "stage"), (20002, "publish"), (20003, "read"), (20004, "delete")):
        done = as_user(uid, 54321, shared, act, place.job)
        assert done.returncode == 0, (act, done.stderr)
    foreign = as_user(20005, 20005, shared, "stage", place.job)
    assert "user 20005, groups [20005] may not write there" in foreign.stderr
    assert "retryable=False" in foreign.stderr


def test_age_is_by_the_files_own_clock(
    storage: Storage, root: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.stage(place, io.BytesIO(b"mine"), 4, "")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is decades ahead
    assert storage.sweep_staging(60).objects == 0
    assert storage.now() < 4e9
    old = storage.now() - 120
    os.utime(root / place.staged, (old, old))
    assert storage.sweep_staging(60).objects == 1


def test_empty_folders_of_killed_workers_go(storage: Storage, root: Path, place: Place) -> None:
    folder = (root / place.staged).parent
    folder.mkdir(parents=True)
    storage.sweep_staging(60)
    assert folder.is_dir()
    storage.sweep_staging(-60)
    assert not (root / ".staging" / place.tenant).exists()
