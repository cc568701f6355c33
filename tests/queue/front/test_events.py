"""Server-sent events: jobs as they change, only one's own, and never a stream that nobody ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from frontkit import Api, Queue, Server, Worker


class Stream:
    def __init__(self, api: Api, tenant: str) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.begun = threading.Event()
        self._http = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=30)
        self._http.request("GET", "/v1/events", headers={"Authorization": f"Bearer {api.tokens[tenant]}"})
        self._socket = self._http.sock
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(http.client.HTTPException, OSError), self._http.getresponse() as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            while line := answer.readline():
                self.begun.set()
                if line.startswith(b"data: {") and len(line) > 20:
                    self.jobs.append(json.loads(line[6:]))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._http.close()

    def states(self, job_id: str) -> list[str]:
        found: list[str] = []
        for job in self.jobs:
            if job.get("id") == job_id and found[-1:] != [job["state"]]:
                found.append(job["state"])
        return found

    def wait(self, job_id: str, state: str) -> None:
        end = time.monotonic() + 15
        while state not in self.states(job_id):
            assert time.monotonic() < end, (state, self.states(job_id))
            time.sleep(0.02)


@contextmanager
def listening(api: Api, tenant: str) -> Iterator[Stream]:
    stream = Stream(api, tenant)
    assert stream.begun.wait(10)
    try:
        yield stream
    finally:
        stream.close()


def test_jobs_as_they_change(api: Api, queue: Queue, worker: Worker) -> None:
    before = queue.submit()
    with (
        listening(api, "user001") as own,
        listening(api, "user002") as foreign,
        listening(api, "staff") as all_,
    ):
        own.wait(before.id, "pending")
        lease = worker.take()
        own.wait(before.id, "processing")
        worker.progress(lease, 1, 5, 10)
        end = time.monotonic() + 10
        while not any(job.get("progress", {}).get("fraction") == 0.75 for job in own.jobs):
            assert time.monotonic() < end
            time.sleep(0.02)
        worker.complete(lease)
        own.wait(before.id, "completed")
        after = queue.submit("user002")
        foreign.wait(after.id, "pending")
        all_.wait(after.id, "pending")
        all_.wait(before.id, "completed")
        assert own.states(before.id) == ["pending", "processing", "completed"]
        assert {job["tenant"] for job in own.jobs} == {"user001"}
        assert {job["tenant"] for job in foreign.jobs} == {"user002"}


def test_too_many_listeners(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.tokens['user002']}"}
    streams = [Stream(api, "user002") for _ in range(20)]
    assert all(stream.begun.wait(20) for stream in streams)
    answer = httpx.get(f"{api.url}/v1/events", headers=headers)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "30"
    for stream in streams:
        stream.close()
    end = time.monotonic() + 20
    while True:  # whoever leaves makes room
        answer = httpx.get(f"{api.url}/v1/events", headers=headers, params={"seconds": 0})
        if answer.status_code == 200:
            break
        assert time.monotonic() < end
        time.sleep(0.2)


def test_redis_restarts_while_somebody_listens(api: Api, queue: Queue, own_redis: Server) -> None:
    with listening(api, "user001") as stream:
        own_redis.stop()
        time.sleep(1.5)
        own_redis.start()
        job = queue.submit()
        stream.wait(job.id, "pending")
