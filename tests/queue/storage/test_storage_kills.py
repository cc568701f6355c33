"""kill -9 between every two steps: nothing half-written is ever seen, and whoever comes next finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import redis
from servers import S3Server

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


def test_on_a_volume(tmp_path: Path) -> None:
    steps = walked("volume", str(tmp_path))
    assert steps["publish"] >= 10
    assert min(steps.values()) >= 5
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert left == [".staging"]


def test_in_s3(seaweedfs: S3Server) -> None:
    steps = walked("s3", seaweedfs.endpoint, f"{uuid.uuid4()}/")
    assert min(steps.values()) >= 6


def test_in_redis(redis_client: redis.Redis) -> None:
    redis_client.flushall()
    steps = walked("redis", str(redis_client.connection_pool.connection_kwargs["port"]))
    assert min(steps.values()) >= 2
    assert int(redis_client.get("comfy:objects:total") or 0) == 0
    assert [key for key in redis_client.keys() if key != b"comfy:objects:total"] == []
