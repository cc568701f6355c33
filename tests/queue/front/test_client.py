"""The Python client: the same values as Broker's, and patience with a server that is busy or away."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from frontkit import WORKFLOW, Api, Queue, Worker, Working, free_port, png

from comfywork.broker import Submission
from comfywork.client import Client
from comfywork.errors import (
    ConfigError,
    ConflictError,
    LimitError,
    QueueError,
    RefusedError,
    UnknownJobError,
)


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api.tokens["user001"], patience=5) as found:
        yield found


def test_the_same_values_as_the_broker(client: Client, queue: Queue, worker: Worker) -> None:
    job = client.submit(Submission(workflow=WORKFLOW, priority="low"))
    assert job.tenant == "user001"
    assert job == queue.broker.status(job.id) == client.status(job.id)
    assert client.queues() == queue.broker.queues()
    assert client.reprioritise(job.id, "high").priority == "high"
    lease = worker.take()
    worker.progress(lease, 1, 5, 10)
    assert client.status(job.id) == queue.broker.status(job.id)
    seen: list[str] = []
    done = threading.Timer(0.5, worker.complete, [lease])
    done.start()
    ended = client.wait(job.id, timeout=20, progress=lambda view: seen.append(view.state))
    done.join()
    assert ended == queue.broker.status(job.id)
    assert (seen[0], seen[-1]) == ("processing", "completed")
    assert client.jobs() == queue.broker.jobs("user001")
    assert [worker.id for worker in client.workers()] == ["worker-1"]
    assert b"".join(client.download(ended, ended.outputs[0])) == png()


def test_more_than_a_page(client: Client, queue: Queue) -> None:
    ids = [queue.submit().id for _ in range(7)]
    assert [job.id for job in client.jobs(limit=5)] == ids[::-1][:5]
    assert [job.id for job in client.jobs(limit=500)] == ids[::-1]


def test_files(client: Client, queue: Queue, tmp_path: Path) -> None:
    key = client.upload("default", "a.png", io.BytesIO(png()))
    assert key.startswith("user001/inputs/")
    workflow = {**WORKFLOW, "3": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
    with Working(queue):
        job = client.wait(client.submit(Submission(workflow=workflow, inputs={"a.png": key})).id, timeout=30)
    client.save(job, job.outputs[0], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == png()
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    queue.storage.delete(job.outputs[0].key)
    with pytest.raises(UnknownJobError):
        client.save(job, job.outputs[0], tmp_path / "gone.png")
    assert not (tmp_path / "gone.png").exists()


def test_errors_are_the_brokers(api: Api, client: Client, queue: Queue) -> None:
    foreign = queue.submit("user002")
    with pytest.raises(UnknownJobError, match="there is no job"):
        client.status(foreign.id)
    with pytest.raises(ConfigError, match="no nodes"):
        client.submit(Submission(workflow={}))
    with pytest.raises(RefusedError, match="user001's"):
        client.submit(Submission(workflow=WORKFLOW, tenant="user002"))
    job = client.submit(Submission(workflow=WORKFLOW))
    with pytest.raises(ConflictError):
        client.submit(Submission(workflow=WORKFLOW, id=job.id, priority="low"))
    with pytest.raises(LimitError, match="has not ended"):
        client.wait(job.id, timeout=0.3)
    with Client(api.url, "wrong") as stranger, pytest.raises(RefusedError):
        stranger.jobs()


def test_a_limit_is_waited_for(api: Api, queue: Queue) -> None:
    with Client(api.url, api.tokens["little"], patience=30) as little:
        little.submit(Submission(workflow=WORKFLOW))
        first = little.submit(Submission(workflow=WORKFLOW))
        room = threading.Timer(1.0, queue.broker.cancel, [first.id])
        room.start()
        begin = time.monotonic()
        little.submit(Submission(workflow=WORKFLOW))
        assert time.monotonic() - begin >= 1
        room.join()
    with Client(api.url, api.tokens["little"], patience=0.1) as hasty, pytest.raises(LimitError) as caught:
        hasty.submit(Submission(workflow=WORKFLOW))
    assert caught.value.after >= 1


class _Flaky(BaseHTTPRequestHandler):
    """503 with Retry-After, then a lost connection, then an answer."""

    calls = 0
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        type(self).calls += 1
        type(self).bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        match type(self).calls:
            case 1:
                self.send_response(503)
                self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case 2:
                self.connection.close()
            case _:
                body = json.dumps(
                    {
                        "id": "0",
                        "tenant": "t",
                        "priority": "low",
                        "state": "pending",
                        "submitted": 1,
                        "new": "?",
                    }
                ).encode()
                self.send_response(201)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_busy_and_lost_answers_are_tried_again_with_the_same_id() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        begin = time.monotonic()
        with Client(f"http://127.0.0.1:{server.server_port}", "x") as client:
            view = client.submit(Submission(workflow=WORKFLOW, tenant="t"))
        assert view.priority == "low"
        assert time.monotonic() - begin >= 1
        assert len({json.loads(body)["id"] for body in _Flaky.bodies}) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nobody_there() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}", "x", patience=0.5)
    with client, pytest.raises(QueueError, match="cannot be reached"):
        client.jobs()
    with pytest.raises(ConfigError, match="no address"):
        Client("queue", "x")
    with pytest.raises(ConfigError, match="one word"):
        Client("http://queue", "two words")
