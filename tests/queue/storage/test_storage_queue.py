"""Objects in a real Redis: full, limited, expired, restarted, with a wrong password."""

from __future__ import annotations

import io
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import storage_servers as servers

from comfywork.storage import MissingError, Place, StorageError
from comfywork.storage.queued import SIZES, TOTAL, QueueStorage

MB = 1_000_000


def opened(client: redis.Redis, **more: Any) -> QueueStorage:
    return QueueStorage(
        client, **{"max_output": 8 * MB, "max_input": 8 * MB, "total": 256 * MB, "ttl": 3600, **more}
    )


def stage(storage: QueueStorage, place: Place, size: int) -> None:
    storage.stage(place, io.BytesIO(b"x" * size), size, "")


def counted(client: redis.Redis) -> tuple[int, int]:
    """What is counted of all, and what the index adds up to: the same, or something was lost."""
    return int(client.get(TOTAL) or 0), sum(map(int, client.hvals(SIZES)))


def fill(storage: QueueStorage, place: Place, done: list[Place]) -> None:
    for n in range(40):
        one = replace(place, name=f"{n}_0.png")
        stage(storage, one, MB)
        done.append(one)


def test_a_full_redis_is_told_and_nothing_is_changed(tmp_path: Path, place: Place) -> None:
    with servers.redis_server(tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as client:
        storage = opened(client)
        storage.check()
        done: list[Place] = []
        with pytest.raises(StorageError, match="Redis is full") as caught:
            fill(storage, place, done)
        assert caught.value.retryable
        assert len(done) > 5
        total, summed = counted(client)
        assert total == summed == len(done) * MB
        # Publishing needs no room: what was made is not lost.
        storage.discard(place.tenant, str(uuid.uuid4()), 1)
        storage.delete(done[0].key)
        client.config_set("maxmemory", "64mb")
        storage.publish(done)
        assert sorted(found.key for found in storage.keys("")) == sorted(one.key for one in done)


def test_objects_have_a_share_and_jobs_the_rest(redis_client: redis.Redis, place: Place) -> None:
    redis_client.flushall()
    storage = opened(redis_client, total=3 * MB)
    for n in range(3):
        stage(storage, replace(place, name=f"{n}_0.png"), MB)
    stage(storage, replace(place, name="2_0.png"), MB)  # again: it takes the room that it has
    with pytest.raises(StorageError, match="0 B are free, 1 MB are needed") as caught:
        stage(storage, replace(place, name="3_0.png"), MB)
    assert caught.value.retryable
    storage.discard(place.tenant, place.job, place.token)
    assert counted(redis_client) == (0, 0)
    stage(storage, replace(place, name="3_0.png"), MB)
    assert counted(redis_client) == (MB, MB)


def test_objects_expire_and_give_their_room_back(redis_client: redis.Redis, place: Place) -> None:
    redis_client.flushall()
    storage = opened(redis_client, total=2 * MB, ttl=1)
    for n in range(2):
        stage(storage, replace(place, name=f"{n}_0.png"), MB)
    storage.publish([replace(place, name="0_0.png")])
    time.sleep(2.2)
    with pytest.raises(MissingError, match="are kept for"):
        storage.open(replace(place, name="0_0.png").key)
    assert list(storage.keys("")) == []
    stage(storage, replace(place, name="5_0.png"), 2 * MB)
    assert counted(redis_client) == (2 * MB, 2 * MB)


def test_a_redis_that_lost_its_data(tmp_path: Path, place: Place) -> None:
    with servers.redis_server(tmp_path) as client:
        storage = opened(client)
        stage(storage, place, 100)
        client.flushall()
        client.script_flush()
        with pytest.raises(MissingError, match="has to be made again"):
            storage.publish([place])
        stage(storage, place, 100)
        storage.publish([place])


def test_a_redis_that_is_away(tmp_path: Path, place: Place) -> None:
    with servers.redis_server(tmp_path) as client:
        storage = opened(client)
        stage(storage, place, 100)
    for act in (
        storage.check,
        storage.now,
        lambda: stage(storage, place, 1),
        lambda: storage.publish([place]),
        lambda: storage.open(place.key),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.retryable


def test_a_wrong_password_and_a_policy_that_loses_jobs(tmp_path: Path, place: Place) -> None:
    with servers.redis_server(
        tmp_path, "--requirepass", "right", "--maxmemory-policy", "allkeys-lru"
    ) as client:
        port = client.connection_pool.connection_kwargs["port"]
        with redis.Redis(host="127.0.0.1", port=port, password="wrong") as wrong:
            with pytest.raises(StorageError, match="refuses the password") as caught:
                opened(wrong).check()
            assert not caught.value.retryable
            assert "wrong" not in str(caught.value)
        with redis.Redis(host="127.0.0.1", port=port, password="right") as right:
            with pytest.raises(StorageError, match=r"allkeys-lru.; set maxmemory-policy noeviction"):
                opened(right).check()
            stage(opened(right), place, 10)


def test_bytes_that_were_changed_in_redis(redis_client: redis.Redis, place: Place) -> None:
    redis_client.flushall()
    storage = opened(redis_client)
    stage(storage, place, 10)
    storage.publish([place])
    redis_client.hset(f"comfy:object:{place.key}", "data", b"other")
    with pytest.raises(StorageError, match="was changed in Redis"):
        storage.open(place.key)
