"""What every storage does: on folders, on a real Redis, on a real S3 server, and on moto's emulation of one."""

from __future__ import annotations

import hashlib
import io
import os
import time
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from comfywork.errors import ConfigError
from comfywork.storage import MissingError, Place, Storage, StorageError, TooLargeError, disposition

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 40


class Endless:
    """Content without an end and without a known size."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int = -1, /) -> bytes:
        assert size >= 0, "an endless source is read in pieces"
        self.given += size
        return bytes(size)


class Breaking:
    def __init__(self, after: int, error: Exception) -> None:
        self._left, self._error = after, error

    def read(self, size: int = -1, /) -> bytes:
        if not self._left:
            raise self._error
        taken = min(size, self._left)
        self._left -= taken
        return b"x" * taken


def put(storage: Storage, place: Place, content: bytes = PNG) -> None:
    storage.stage(place, io.BytesIO(content), len(content), "image/png")
    storage.publish([place])


def listed(storage: Storage, prefix: str = "") -> list[str]:
    return sorted(found.key for found in storage.keys(prefix))


def staged(storage: Storage) -> int:
    """Objects, parts of uploads, and half-written files that only a sweep would find."""
    return storage.sweep_staging(-60, dry_run=True).objects


def content(storage: Storage, key: str) -> bytes:
    with storage.open(key) as opened:
        return opened.read()


def test_an_output_is_there_when_it_is_published_and_not_before(storage: Storage, place: Place) -> None:
    stored = storage.stage(place, io.BytesIO(PNG), None, "image/png")
    assert (stored.key, stored.size, stored.media_type) == (place.key, len(PNG), "image/png")
    assert stored.sha256 == hashlib.sha256(PNG).hexdigest()
    assert listed(storage) == []
    with pytest.raises(MissingError, match=place.key):
        storage.open(place.key)
    storage.publish([place])
    (found,) = storage.keys("")
    assert (found.key, found.size) == (place.key, len(PNG))
    assert abs(found.modified - storage.now()) < 10
    with storage.open(place.key) as opened:
        assert (opened.size, opened.media_type) == (len(PNG), "image/png")
        assert opened.read(8) + opened.read(0) + opened.read(1000) + opened.read() == PNG
        assert opened.read() == opened.read(5) == b""
    assert staged(storage) == 0


def test_publishing_may_be_repeated_by_anyone(again: Callable[[], Storage], place: Place) -> None:
    places = [replace(place, name=f"9_{n}.png") for n in range(3)]
    first, second = again(), again()
    for n, one in enumerate(places):
        first.stage(one, io.BytesIO(PNG + bytes([n])), None, "image/png")
    first.publish(places[:1])
    second.publish(places)
    first.publish(places)
    second.publish([])
    assert listed(first) == [one.key for one in places]
    assert [content(second, one.key)[-1] for one in places] == [0, 1, 2]


def test_many_at_once_publish_the_same(again: Callable[[], Storage], place: Place) -> None:
    places = [replace(place, name=f"9_{n}.png") for n in range(10)]
    workers = [again() for _ in range(4)]
    for one in places:
        workers[0].stage(one, io.BytesIO(PNG), None, "image/png")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda worker: worker.publish(places), workers))
    assert listed(workers[0]) == [one.key for one in places]
    assert staged(workers[0]) == 0


def test_one_instance_serves_many_threads(storage: Storage, place: Place) -> None:
    places = [replace(place, job=str(uuid.uuid4()), name=f"{n}_0.png") for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: put(storage, one, PNG + one.name.encode()), places))
    assert sorted(one.key for one in places) == listed(storage)
    assert all(content(storage, one.key) == PNG + one.name.encode() for one in places)


def test_what_is_neither_staged_nor_published_is_missing(storage: Storage, place: Place) -> None:
    with pytest.raises(MissingError, match="has to be made again"):
        storage.publish([place])
    with pytest.raises(MissingError):
        storage.open(place.key)
    storage.delete(place.key)
    storage.discard(place.tenant, place.job, place.token)
    assert listed(storage) == []


def test_another_token_publishes_nothing(storage: Storage, place: Place) -> None:
    storage.stage(place, io.BytesIO(PNG), None, "image/png")
    with pytest.raises(MissingError):
        storage.publish([replace(place, token=8)])
    assert listed(storage) == []


def test_staging_again_replaces(storage: Storage, place: Place) -> None:
    storage.stage(place, io.BytesIO(PNG), None, "image/png")
    put(storage, place, b"GIF89a, the second")
    with storage.open(place.key) as opened:
        assert (opened.read(), opened.media_type) == (b"GIF89a, the second", "image/gif")


def test_discarding_takes_one_tokens_own(storage: Storage, place: Place) -> None:
    other = replace(place, token=70)
    for one in (place, replace(place, name="9_1.png"), other):
        storage.stage(one, io.BytesIO(PNG), None, "image/png")
    storage.discard(place.tenant, place.job, place.token)
    assert staged(storage) == 1
    with pytest.raises(MissingError):
        storage.publish([place])
    storage.publish([other])
    assert content(storage, place.key) == PNG


def test_too_large_is_refused_and_leaves_nothing(storage: Storage, place: Place) -> None:
    limit = 48 << 20
    with pytest.raises(TooLargeError, match=r"50\.3 MB") as caught:
        storage.stage(place, io.BytesIO(b""), limit + 1, "image/png")
    assert not caught.value.retryable
    endless = Endless()
    with pytest.raises(TooLargeError):
        storage.stage(place, endless, None, "video/mp4")  # type: ignore[arg-type]
    assert endless.given <= limit + (64 << 20)
    with pytest.raises(TooLargeError):
        storage.put_input("acme", "huge.bin", Endless(), None, "")  # type: ignore[arg-type]
    assert (listed(storage), staged(storage)) == ([], 0)


@pytest.mark.parametrize("announced", [len(PNG) - 1, len(PNG) + 1, 0])
def test_another_size_than_announced_is_an_error(storage: Storage, place: Place, announced: int) -> None:
    with pytest.raises(StorageError, match="that were announced") as caught:
        storage.stage(place, io.BytesIO(PNG), announced, "image/png")
    assert caught.value.retryable
    with pytest.raises(MissingError):
        storage.publish([place])
    assert staged(storage) == 0


@pytest.mark.parametrize("after", [0, 100, 12 << 20])
def test_errors_of_the_source_come_through(storage: Storage, place: Place, after: int) -> None:
    for error in (ConnectionResetError(104, "ComfyUI is gone"), ValueError("mine")):
        with pytest.raises(type(error)) as caught:
            storage.stage(place, Breaking(after, error), None, "video/mp4")  # type: ignore[arg-type]
        assert caught.value is error
    assert (listed(storage), staged(storage)) == ([], 0)


def test_nothing_is_an_object_too(storage: Storage, place: Place) -> None:
    put(storage, place, b"")
    with storage.open(place.key) as opened:
        assert (opened.size, opened.read(), opened.media_type) == (0, b"", "application/octet-stream")


def test_large_ones_arrive_whole(storage: Storage, place: Place) -> None:
    large = b"\x00\x00\x00\x20ftypisom" + os.urandom(1 << 20) * 18  # parts when uploaded, and when copied
    video = replace(place, name="9_0.mp4")
    stored = storage.stage(video, io.BytesIO(large), None, "video/mp4")
    assert stored.sha256 == hashlib.sha256(large).hexdigest()
    storage.publish([video])
    hashed = hashlib.sha256()
    with storage.open(video.key) as opened:
        assert (opened.size, opened.media_type) == (len(large), "video/mp4")
        while piece := opened.read(1 << 20):
            hashed.update(piece)
    assert hashed.hexdigest() == stored.sha256
    assert staged(storage) == 0


def test_a_page_that_is_called_a_picture_is_not_shown_as_one(storage: Storage, place: Place) -> None:
    for page in (
        b"<html><script>alert(1)</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg" onload="x()"/>',
    ):
        assert (
            storage.stage(place, io.BytesIO(page), None, "text/html").media_type == "application/octet-stream"
        )
        storage.publish([place])
        with storage.open(place.key) as opened:
            assert disposition(opened.media_type, place.name).startswith("attachment")


def test_listing_is_by_prefix_and_keeps_jobs_together(storage: Storage) -> None:
    jobs = sorted(str(uuid.uuid4()) for _ in range(3))
    places = [
        Place(tenant=tenant, job=job, token=1, name=name)
        for tenant in ("a", "a-b", "ab")
        for job in jobs
        for name in ("1_0.png", "10_0.png", "1_1.png")
    ]
    for one in places:
        storage.stage(one, io.BytesIO(b"x"), 1, "")
    storage.publish(places)
    keys = sorted(one.key for one in places)
    assert listed(storage) == keys
    owners = [found.key.rpartition("/")[0] for found in storage.keys("")]
    assert len([one for n, one in enumerate(owners) if owners[n - 1] != one]) == 9
    for prefix in (
        "a",
        "a/",
        f"a-b/{jobs[1]}/",
        f"ab/{jobs[0]}/1",
        f"ab/{jobs[0]}/1_1.png",
        "b",
        f"a/{jobs[0][:9]}",
    ):
        assert listed(storage, prefix) == [key for key in keys if key.startswith(prefix)], prefix
    for prefix in ("../", "/", "a/../ab/", "./a", "a//", ".staging/", "\0"):
        assert listed(storage, prefix) == [], prefix


@pytest.mark.parametrize("again", ["queue", "seaweedfs"], indirect=True)
def test_more_than_a_page_of_them(storage: Storage, place: Place) -> None:
    places = [replace(place, name=f"{n}_0.png") for n in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: storage.stage(one, io.BytesIO(b"x"), 1, ""), places))
    assert staged(storage) == 1050
    storage.publish(places[:30])
    assert listed(storage) == sorted(one.key for one in places[:30])
    storage.discard(place.tenant, place.job, place.token)
    assert staged(storage) == 0


def test_the_same_input_twice_is_one(storage: Storage) -> None:
    first = storage.put_input("acme", "Café portrait.PNG", io.BytesIO(PNG), len(PNG), "image/png")
    again = storage.put_input("acme", "Café portrait.PNG", io.BytesIO(PNG), None, "image/png")
    assert first == again
    assert first.key == f"acme/inputs/{first.sha256[:16]}-cafe-portrait.png"
    assert first.media_type == "image/png"
    other = storage.put_input("acme", "Café portrait.PNG", io.BytesIO(PNG + b"!"), None, "image/png")
    foreign = storage.put_input("other", "Café portrait.PNG", io.BytesIO(PNG), None, "image/png")
    assert listed(storage) == sorted([first.key, other.key, foreign.key])
    assert content(storage, first.key) == PNG
    assert staged(storage) == 0


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b.png", "C:\\x.png", "nul\0.png", "", ".", "..", "/", "..."]
)
def test_an_input_that_is_a_path_is_refused(storage: Storage, name: str) -> None:
    with pytest.raises(ConfigError):
        storage.put_input("acme", name, io.BytesIO(PNG), None, "image/png")
    with pytest.raises(ConfigError):
        storage.put_input("../acme", "x.png", io.BytesIO(PNG), None, "image/png")
    assert (listed(storage), staged(storage)) == ([], 0)


def test_what_killed_workers_left_goes_by_age(storage: Storage, place: Place) -> None:
    mine = replace(place, job=str(uuid.uuid4()))
    for one in (place, replace(place, name="9_1.png"), mine):
        storage.stage(one, io.BytesIO(PNG), None, "image/png")
    assert storage.sweep_staging(3600).objects == 0
    held: list[tuple[str, str]] = []

    def holds(tenant: str, job: str) -> bool:
        held.append((tenant, job))
        return job == mine.job

    time.sleep(1.1)
    swept = storage.sweep_staging(0, holds, dry_run=True)
    assert (swept.objects, swept.size) == (2, 2 * len(PNG))
    assert sorted(held) == sorted([("acme", place.job), ("acme", mine.job)])
    assert storage.sweep_staging(0, holds) == swept
    with pytest.raises(MissingError):
        storage.publish([place])
    storage.publish([mine])
    assert (listed(storage), staged(storage)) == ([mine.key], 0)


def test_a_link_lets_a_browser_read_for_a_while(storage: Storage, place: Place) -> None:
    put(storage, place)
    link = storage.link(place.key, 2)
    if storage.name != "s3":
        assert link is None
        return
    assert link
    with urllib.request.urlopen(link, timeout=10) as answer:
        assert answer.read() == PNG
        assert answer.headers["Content-Disposition"].startswith("attachment")


def test_the_check_leaves_nothing(storage: Storage) -> None:
    storage.check()
    storage.check()
    assert (listed(storage), staged(storage)) == ([], 0)


@pytest.mark.parametrize(
    "key",
    ["", "/", "acme", "acme/inputs", "acme/inputs/", "../x/y", "acme/../x", "/etc/passwd", ".staging/a/b", "acme/inputs/x",
     "ACME/inputs/0123456789abcdef-x", "acme/inputs/0123456789abcdef-X.png", "acme/inputs/0123456789abcdef-x/../../y"],
)  # fmt: skip
@pytest.mark.parametrize("call", ["open", "delete", "link"])
def test_no_other_key_names_anything(storage: Storage, key: str, call: str) -> None:
    more: dict[str, Any] = {"seconds": 5} if call == "link" else {}
    with pytest.raises(ConfigError):
        getattr(storage, call)(key, **more)
