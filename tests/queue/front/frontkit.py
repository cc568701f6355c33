"""A real Redis, a real API, a volume, and a worker's hand: what the tests of the front use. conftest.py takes the fixtures over."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import pytest
import redis

from comfywork.api.tokens import make
from comfywork.broker import Broker, Submission
from comfywork.lease import Lease, Ledger
from comfywork.storage import Place, Storage, StorageSettings, open_storage
from comfywork.views import Failure, JobView, Output

ROOT = Path(__file__).parents[3]
PASSWORD = "correct horse"
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "made"},
        "_meta": {"title": "Save"},
    },
}
METRICS_TOKEN = "metrics-token-of-this-test"


def png(colour: tuple[int, int, int] = (37, 99, 235), size: int = 64) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(colour) * size for _ in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    """A Redis of this test's own."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        self.process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
             "--requirepass", PASSWORD, "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        client = redis.Redis(port=self.port, password=PASSWORD)
        for _ in range(200):
            with contextlib.suppress(redis.RedisError):
                client.ping()
                break
            time.sleep(0.02)
        client.close()

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Queue:
    broker: Broker
    storage: Storage
    environ: dict[str, str]
    folder: Path

    def submit(self, tenant: str = "user001", **more: Any) -> JobView:
        return self.broker.submit(Submission(workflow=more.pop("workflow", WORKFLOW), tenant=tenant, **more))

    def run(self, *arguments: str, code: int | None = 0, stdin: str | None = None, **environ: str) -> Any:
        """comfywork as a user calls it."""
        done = subprocess.run(
            [sys.executable, "-m", "comfywork", *arguments],
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


class Worker:
    """Drives jobs through their states as an agent does."""

    def __init__(self, queue: Queue, name: str = "worker-1") -> None:
        self.name, self.nonce = name, uuid.uuid4().hex
        self._storage = queue.storage
        self.ledger = Ledger(queue.broker.connection, queue.broker.settings)
        assert self.ledger.own(name, self.nonce)
        self.say(state="idle")

    def say(self, lease: Lease | None = None, meta: dict[str, Any] | None = None, **said: Any) -> None:
        known = {
            "gpu": "NVIDIA H100",
            "target": "h100",
            "image": "comfyui:h100",
            "comfyui": "0.3.80",
            "host": "gpu-machine-7",
            "models": 12,
            "memory_used": 20_000_000_000,
            "memory_total": 80_000_000_000,
            "fallbacks": 3,
            **said,
        }
        self.ledger.beat(self.name, self.nonce, lease, meta, known)

    def take(self) -> Lease:
        for _ in range(50):
            found = self.ledger.take(self.name, self.nonce)
            if isinstance(found, Lease):
                self.say(found, state="busy", job=found.job)
                return found
            time.sleep(0.05)
        raise AssertionError("no job to take")

    def progress(self, lease: Lease, done: int, value: int = 0, maximum: int = 0, node: str = "2") -> None:
        meta = {"progress": {"done": done, "value": value, "maximum": maximum, "node": node}}
        self.say(lease, meta, state="busy", job=lease.job)

    def complete(self, lease: Lease, files: dict[str, bytes] | None = None) -> None:
        tenant = lease.queue.split(".")[1]
        outputs, places = [], []
        for name, content in (files or {"2_0.png": png()}).items():
            place = Place(tenant=tenant, job=lease.job, token=lease.token, name=name)
            stored = self._storage.stage(place, io.BytesIO(content), len(content), "image/png")
            places.append(place)
            outputs.append(
                Output(
                    key=stored.key,
                    node="2",
                    name=f"made_{name}",
                    media_type=stored.media_type,
                    size=stored.size,
                    sha256=stored.sha256,
                )
            )
        sealed = self.ledger.seal(lease, outputs, lease.token)
        self._storage.publish(places)
        self.ledger.finish(lease, sealed)
        self.say(state="idle", job="")

    def fail(self, lease: Lease, kind: Any = "execution", message: str = "node 2 raised") -> None:
        self.ledger.fail(
            lease.job, lease.token, Failure(kind=kind, message=message, details="RuntimeError in node 2")
        )

    def cancelled(self, lease: Lease) -> None:
        self.ledger.cancelled(lease.job, lease.token)


class Working:
    """A worker that completes whatever comes, in a thread."""

    def __init__(self, queue: Queue, name: str = "worker-1", seconds: float = 0.02) -> None:
        self._worker, self._seconds = Worker(queue, name), seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            found = self._worker.ledger.take(self._worker.name, self._worker.nonce)
            if isinstance(found, Lease):
                self._worker.progress(found, 1)
                time.sleep(self._seconds)
                self._worker.complete(found)
            else:
                self._worker.say(state="idle")
                time.sleep(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


@dataclass
class Api:
    url: str
    tokens: dict[str, str]
    tokens_file: Path
    process: subprocess.Popen[str] = field(repr=False)
    log: list[str] = field(default_factory=list, repr=False)


@pytest.fixture(scope="session")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(port=free_port(), folder=tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _world(own_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Queue:
    folder = tmp_path_factory.mktemp("front")
    (folder / "password").write_text(PASSWORD + "\n")
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "entrypoint"),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(own_redis.port),
        "REDIS_PASSWORD_FILE": str(folder / "password"),
        "STORAGE": "volume",
        "OUTPUTS_PATH": str(folder / "output"),
        "INPUTS_PATH": str(folder / "input"),
        "STORAGE_MAX_INPUT": "1MB",
        "QUEUE_MAX_WORKFLOW": "100kB",
    }
    for name in ("output", "input"):
        (folder / name).mkdir()
    broker = Broker.of_environment(environ)
    storage = open_storage(StorageSettings.from_environment(environ), broker.connection)
    return Queue(broker=broker, storage=storage, environ=environ, folder=folder)


@pytest.fixture
def queue(_world: Queue) -> Queue:
    """Empty."""
    _world.broker.connection.flushall()
    return _world


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return Worker(queue)


def _drain(stream: IO[str], log: list[str]) -> None:
    with stream:
        log.extend(stream)


def serve(environ: dict[str, str], *arguments: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """`comfyrun api` on a free port: its process, address, and what it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "comfywork", "api", "--listen", "127.0.0.1:0", *arguments],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"(https?://\S+:\d+)/ is", line):
            threading.Thread(target=_drain, args=(process.stderr, log), daemon=True).start()
            return process, found[1], log
    raise AssertionError("".join(log))


@pytest.fixture(scope="session")
def _api(_world: Queue) -> Iterator[Api]:
    path = _world.folder / "tokens.yaml"
    tokens = {
        "user001": make(path, "user001", {}),
        "user002": make(path, "user002", {}),
        "little": make(path, "little", {"priority": "normal", "depth": 2}),
        "slow": make(path, "slow", {"rate": 2}),
        "staff": make(path, "staff", {"admin": True}),
    }
    environ = {**_world.environ, "TOKENS_FILE": str(path), "METRICS_TOKEN": METRICS_TOKEN}
    process, url, log = serve(environ)
    yield Api(url=url, tokens=tokens, tokens_file=path, process=process, log=log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM), "".join(log)
    assert "Traceback" not in "".join(log), "".join(log)


@pytest.fixture
def api(queue: Queue, _api: Api) -> Api:
    """A server that runs, over an empty queue."""
    return _api


def as_json(text: str) -> Any:
    return json.loads(text)
