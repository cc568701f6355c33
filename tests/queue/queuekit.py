"""Real Redis servers, agents as processes of their own, and a stand-in of ComfyUI."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from zygote import Child, Zygote

from comfywork.broker import Broker, Submission
from comfywork.settings import Redis, Settings
from comfywork.views import JobView

HERE = Path(__file__).parent


ENTRYPOINT = HERE.parents[1] / "entrypoint"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(seen: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """What `seen` says once it says anything."""
    end = time.monotonic() + seconds
    while True:
        if found := seen():
            return found
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {what or seen}")
        time.sleep(0.02)


class Server:
    """A Redis of its own: its port, its folder, an append-only file."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.port, self.folder, self.more = free_port(), folder, more
        self.password: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> Server:
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        words += ["--appendonly", "yes", "--save", "", "--logfile", str(self.folder / "log"), *self.more]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = redis.Redis(port=self.port, password=self.password)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except (redis.ConnectionError, redis.BusyLoadingError):
                return False

        until(answers, what="redis-server answers")
        client.close()
        return self

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def forget(self) -> None:
        """Its data are gone."""
        assert self.process is None
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password)


def settings_of(server: Server, **more: Any) -> Settings:
    where = Redis(port=server.port, password=server.password)
    return Settings(**{"redis": where, "heartbeat_timeout": 4.0, "poll_interval": 0.1, **more})


@dataclass
class Comfy:
    """The stand-in."""

    folder: Path
    zygote: Zygote
    port: int = field(default_factory=free_port)
    process: Child | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Comfy:
        log = self.folder.parent / f"{self.folder.name}.log"
        self.process = self.zygote.run("comfy", [str(self.port), str(self.folder)], {}, log)
        until(self.answers, what="the stand-in of ComfyUI answers")
        return self

    def answers(self) -> bool:
        try:
            return bool(self.ask("/prompt"))
        except OSError:
            return False

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=5) as answer:
            return json.load(answer)

    def executed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/fake")["executed"]
        return found

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Worker:
    id: str
    environ: dict[str, str]
    log: Path
    zygote: Zygote
    process: Child | None = None

    def start(self, **more: str) -> Worker:
        assert self.process is None or self.process.poll() is not None
        self.process = self.zygote.run("agent", [], {**self.environ, **more}, self.log)
        return self

    def taking(self) -> Worker:
        """Started, and what SIGTERM is to it is set."""
        before = self.said().count("takes jobs") if self.log.exists() else 0
        self.start()
        until(lambda: self.log.exists() and self.said().count("takes jobs") > before, what="it takes jobs")
        return self

    def ended(self, seconds: float = 20.0) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def fake(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A workflow for the stand-in."""
    return {"1": {"class_type": "Fake", "inputs": {"text": text, "filename_prefix": "fake", **more}}}


def submission(tenant: str = "t1", text: str = "hello", **more: Any) -> Submission:
    known = {key: more.pop(key) for key in ("priority", "id", "inputs", "timeout", "extra") if key in more}
    return Submission(tenant=tenant, workflow=fake(text, **more), **known)


def ended(broker: Broker, job: JobView | str, seconds: float = 30.0) -> JobView:
    return broker.wait(job if isinstance(job, str) else job.id, timeout=seconds)


def consistent(connection: redis.Redis) -> None:
    """No trace of a job that has ended in what describes jobs that have not; every waiting job in one list, once."""
    leases = {key.decode().rpartition(":")[2] for key in connection.keys("comfy:lease:*")}
    assert {one.decode() for one in connection.zrange("comfy:leases", 0, -1)} == leases
    assert sorted(one.decode() for one in connection.hvals("comfy:held")) == sorted(leases)
    queued: list[str] = []
    for key in connection.keys("rq:queue:comfy.*"):
        found = [one.decode() for one in connection.lrange(key, 0, -1)]
        queued += found
        name = key.decode().removeprefix("rq:queue:")
        assert not found or connection.sismember("comfy:waiting", name), f"nobody looks at {name}"
    assert len(queued) == len(set(queued)), "twice in a list"
    assert not leases & set(queued)
    running = {
        member.decode().rpartition(":")[0]
        for key in connection.keys("rq:wip:*")
        for member in connection.zrange(key, 0, -1)
    }
    assert running == leases
    registries: dict[str, list[str]] = {}
    for kind in ("finished", "failed", "canceled"):
        for key in connection.keys(f"rq:{kind}:*"):
            for member in connection.zrange(key, 0, -1):
                registries.setdefault(member.decode(), []).append(kind)
    for key in connection.keys("rq:job:*"):
        job_id = key.decode().removeprefix("rq:job:")
        status = connection.hget(key, "status").decode()
        where = registries.get(job_id, [])
        match status:
            case "queued":
                assert job_id in queued, f"{job_id} waits in no list"
                assert not where
            case "started":
                assert job_id in leases, f"{job_id} runs nowhere"
                assert not where
            case _:
                assert where == [status], f"{job_id} is {status}, and in {where}"
                assert job_id not in queued
                assert job_id not in leases
                assert connection.ttl(key) > 0
