"""kill -9 between every two steps: nothing half-written is ever seen, and whoever comes next finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from storage_servers import S3Server

ROOT = Path(__file__).parents[3]


def walked(*argv: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killing.py"), *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT / "entrypoint")},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps: dict[str, int] = json.loads(done.stdout)
    print(argv[0], steps)
    return steps


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: it is about steps, and there are hundreds of them with a flush each."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="imgbuild-") as folder:
        yield Path(folder)


def test_on_a_volume(quick: Path) -> None:
    steps = walked("volume", str(quick))
    assert steps["publish"] >= 10
    assert min(steps.values()) >= 5
    left = [str(path.relative_to(quick)) for path in quick.rglob("*")]
    assert left == [".staging"]


def test_in_s3(seaweedfs: S3Server) -> None:
    steps = walked("s3", seaweedfs.endpoint, f"{uuid.uuid4()}/")
    assert min(steps.values()) >= 4


def test_in_redis(redis_client: redis.Redis) -> None:
    redis_client.flushall()
    steps = walked("redis", str(redis_client.connection_pool.connection_kwargs["port"]))
    assert min(steps.values()) >= 2
    assert int(redis_client.get("comfy:objects:total") or 0) == 0
    assert [key for key in redis_client.scan_iter() if key != b"comfy:objects:total"] == []
