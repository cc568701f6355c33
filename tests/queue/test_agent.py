"""The agent with a stand-in of ComfyUI: what goes wrong, and what becomes of the job."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from queuekit import Comfy, Server, Worker, consistent, ended, fake, settings_of, submission, until

from comfywork.broker import Broker, Submission
from comfywork.storage import open_storage

Make = Callable[..., Worker]


@pytest.fixture
def queue(server: Server) -> Broker:
    return Broker(server.client, settings_of(server))


def test_a_job(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    worker = workers(server, comfy).taking()
    seen = []
    job = queue.submit(submission(text="bytes", seconds=1.0))
    view = queue.wait(job.id, timeout=20, progress=lambda one: seen.append(one.progress.fraction))
    assert view.state == "completed"
    assert [output.key for output in view.outputs] == [f"t1/{job.id}/1_0.png"]
    with open_storage(worker.environ).open(view.outputs[0].key) as opened:
        assert opened.read() == b"bytes"
    assert view.ended >= view.started >= view.submitted
    (one,) = queue.workers()
    assert (one.gpu, one.memory_used) == ("fake", 600)
    until(lambda: [one.models for one in queue.workers()] == [2], what="its models are counted")
    until(lambda: not list((comfy.folder / "output").glob("*/*")), what="ComfyUI's folder is cleaned")
    consistent(server.client)


@pytest.mark.parametrize(
    ("asked", "kind", "says", "prompts"),
    [
        ({"fail": "no such thing"}, "execution", "Fake (node 1): RuntimeError: no such thing", 1),
        ({"oom": "always"}, "memory", "Allocation on device", 2),
        ({"vanish": True}, "execution", "is not in ComfyUI's folder", 2),
    ],
)
def test_a_job_that_fails(
    server: Server,
    comfy: Comfy,
    workers: Make,
    queue: Broker,
    asked: dict[str, Any],
    kind: str,
    says: str,
    prompts: int,
) -> None:
    workers(server, comfy).taking()
    view = ended(queue, queue.submit(submission(**asked)))
    assert view.state == "failed"
    assert view.failure is not None
    assert view.failure.kind == kind
    assert says in view.failure.message
    assert view.attempts == 1
    assert len(comfy.executed()) == prompts
    consistent(server.client)


def test_out_of_memory_once(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    workers(server, comfy).taking()
    assert ended(queue, queue.submit(submission(oom="once"))).state == "completed"
    assert comfy.ask("/fake")["frees"] == [{"unload_models": True, "free_memory": True}]


def test_a_workflow_that_comfyui_refuses(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    workers(server, comfy).taking()
    wrong = {"7": {"class_type": "NoSuchNode", "inputs": {}}}
    view = ended(queue, queue.submit(Submission(tenant="t1", workflow=wrong)))
    assert view.failure is not None
    assert view.failure.kind == "invalid"
    assert "node 7 (NoSuchNode)" in view.failure.message


def test_a_poison_job_and_the_one_behind_it(
    server: Server, comfies: Callable[[], Comfy], workers: Make, queue: Broker
) -> None:
    """It ends ComfyUI each time; somebody starts ComfyUI again, as the engine's restart policy does."""
    comfy = comfies()
    workers(server, comfy).taking()
    poison, other = queue.submit(submission(die=True, seconds=0.2)), queue.submit(submission(text="fine"))
    for _ in range(3):
        assert comfy.process is not None
        until(lambda: comfy.process and comfy.process.poll() is not None, what="ComfyUI dies")
        comfy.start()
    view = ended(queue, poison)
    assert view.state == "failed"
    assert view.failure is not None
    assert view.failure.kind == "comfyui"
    assert view.attempts == 3
    assert ended(queue, other).state == "completed"
    consistent(server.client)


def test_comfyui_dies_and_the_job_is_done_elsewhere_at_once(
    server: Server, comfies: Callable[[], Comfy], workers: Make, queue: Broker
) -> None:
    first, second = comfies(), comfies()
    workers(server, first, "w1").taking()
    job = queue.submit(submission(seconds=1.5))
    until(first.executed, what="it runs")
    workers(server, second, "w2").taking()
    first.stop()
    begin = time.monotonic()
    view = ended(queue, job)
    assert (view.state, view.worker, view.attempts) == ("completed", "w2", 2)
    assert time.monotonic() - begin < 3.5, "nobody waited for a lease to expire"
    assert "ComfyUI" in view.note


def test_cancel_while_it_waits_runs_and_is_stored(
    server: Server, comfy: Comfy, workers: Make, queue: Broker, tmp_path: Path
) -> None:
    waiting = queue.submit(submission())
    assert queue.cancel(waiting.id).state == "cancelled"
    assert queue.cancel(waiting.id).state == "cancelled"
    worker = workers(server, comfy).taking()
    running = queue.submit(submission(seconds=30))
    until(comfy.executed, what="it runs")
    begin = time.monotonic()
    queue.cancel(running.id)
    assert ended(queue, running).state == "cancelled"
    assert time.monotonic() - begin < 3
    assert comfy.executed()[0]["outcome"] == "interrupted"
    # Storing: the storage does not answer, and the worker waits for it.
    outputs = tmp_path / "outputs"
    outputs.rename(tmp_path / "away")
    storing = queue.submit(submission())
    until(lambda: "tried again" in worker.said(), what="the storage is away")
    queue.cancel(storing.id)
    assert ended(queue, storing).state == "cancelled"
    (tmp_path / "away").rename(outputs)
    # An ended one stays as it is.
    done = ended(queue, queue.submit(submission()))
    assert queue.cancel(done.id) == done
    assert [one.state for one in queue.jobs(states=["cancelled"])] == ["cancelled"] * 3
    consistent(server.client)


def test_a_job_that_runs_too_long(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    workers(server, comfy).taking()
    view = ended(queue, queue.submit(submission(seconds=60, timeout=1.0)))
    assert view.failure is not None
    assert view.failure.kind == "timeout"
    assert view.attempts == 1


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_comfyui_ignores_the_interrupt(
    server: Server, comfy: Comfy, workers: Make, queue: Broker, how: str
) -> None:
    """The job ends all the same, and the worker ends with the code that has ComfyUI started again."""
    worker = workers(server, comfy, STUBBORN="1").taking()
    job = queue.submit(submission(seconds=60, hang=60, timeout=1.0 if how == "timeout" else None))
    until(comfy.executed, what="it runs")
    if how == "cancel":
        queue.cancel(job.id)
    view = ended(queue, job)
    assert view.state == ("failed" if how == "timeout" else "cancelled")
    assert worker.ended() == 75
    assert "does not end" in worker.said()
    consistent(server.client)


def test_the_storage_is_away_at_upload(
    server: Server, comfy: Comfy, workers: Make, queue: Broker, tmp_path: Path
) -> None:
    worker = workers(server, comfy).taking()
    (tmp_path / "outputs").rename(tmp_path / "away")
    job = queue.submit(submission())
    until(lambda: "tried again" in worker.said(), what="the storage is away")
    time.sleep(5)  # longer than a lease
    assert queue.status(job.id).state == "processing"
    (tmp_path / "away").rename(tmp_path / "outputs")
    view = ended(queue, job)
    assert (view.state, view.attempts) == ("completed", 1)
    assert len(comfy.executed()) == 1


def test_the_storage_stays_away(
    server: Server, comfy: Comfy, workers: Make, queue: Broker, tmp_path: Path
) -> None:
    """The worker hands the job back and ends: it would fail one job after the other."""
    worker = workers(server, comfy, PATIENCE="0.1").taking()
    (tmp_path / "outputs").rename(tmp_path / "away")
    job, behind = queue.submit(submission()), queue.submit(submission())
    assert worker.ended() == 69
    view = queue.status(job.id)
    assert (view.state, view.attempts) == ("pending", 1)
    assert "is not there; mount the volume" in view.note
    worker.start()
    assert worker.ended() == 69, "it begins nothing while it can store nothing"
    (tmp_path / "away").rename(tmp_path / "outputs")
    worker.taking()
    assert ended(queue, job).state == "completed"
    assert ended(queue, behind).attempts == 1


def test_sigterm_lets_the_job_end(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    worker = workers(server, comfy).taking()
    job, behind = queue.submit(submission(seconds=1.5)), queue.submit(submission())
    until(comfy.executed, what="it runs")
    worker.signal(signal.SIGTERM)
    until(lambda: [one.state for one in queue.workers()] == ["draining"], what="it says so")
    assert worker.ended() == 0
    assert queue.status(job.id).state == "completed"
    assert queue.status(behind.id).state == "pending"
    assert queue.workers() == []
    consistent(server.client)


@pytest.mark.parametrize("how", ["time", "second signal", "stubborn"])
def test_sigterm_hands_back_what_takes_too_long(
    server: Server, comfies: Callable[[], Comfy], workers: Make, queue: Broker, how: str
) -> None:
    comfy = comfies()
    worker = workers(server, comfy, WORKER_DRAIN_TIMEOUT="1" if how == "time" else "60").taking()
    more = {"hang": 60} if how == "stubborn" else {}
    job = queue.submit(submission(seconds=20, **more))
    until(comfy.executed, what="it runs")
    begin = time.monotonic()
    worker.signal(signal.SIGTERM)
    if how != "time":
        time.sleep(0.3)
        worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.said()
    assert time.monotonic() - begin < 6
    view = queue.status(job.id)
    assert (view.state, view.attempts, view.note) == ("pending", 0, "its worker was stopped")
    consistent(server.client)


def test_two_workers_with_one_id(
    server: Server, comfies: Callable[[], Comfy], workers: Make, queue: Broker, tmp_path: Path
) -> None:
    first = workers(server, comfies(), "w1").taking()
    # On this machine: the lock says it at once.
    again = workers(server, comfies(), "w1").start()
    assert again.ended() == 2
    assert "another process on this machine is worker w1" in again.said()
    # On another machine: the queue says it, when the first has proven that it lives.
    other = workers(server, comfies(), "w1", COMFYWORK_STATE=str(tmp_path / "other" / "agent.json")).start()
    assert other.ended() == 2
    assert "another worker goes by the name w1, and lives" in other.said()
    assert first.process is not None
    assert first.process.poll() is None
    assert ended(queue, queue.submit(submission())).state == "completed"


def test_the_cached_file_of_an_input_and_names_that_are_alike(
    server: Server, comfy: Comfy, workers: Make, queue: Broker
) -> None:
    worker = workers(server, comfy).taking()
    storage = open_storage(worker.environ)
    keys = {
        name: storage.put_input("t1", "x.png", BytesIO(content), len(content), "image/png").key
        for name, content in (("a/x.png", b"first"), ("b/x.png", b"second"))
    }
    workflow = {
        "1:2": fake(input="a/x.png", filename_prefix="a")["1"],
        "1_2": fake(input="b/x.png", filename_prefix="b")["1"],
    }
    view = ended(queue, queue.submit(Submission(tenant="t1", workflow=workflow, inputs=keys)))
    assert view.state == "completed", view.failure
    found = {}
    for output in view.outputs:
        with storage.open(output.key) as opened:
            found[output.node] = opened.read()
    assert found == {"1:2": b"first", "1_2": b"second"}
    missing = queue.submit(
        Submission(tenant="t1", workflow=fake(input="y"), inputs={"y": "t1/inputs/0123456789abcdef-y"})
    )
    failure = ended(queue, missing).failure
    assert failure is not None
    assert failure.kind == "inputs"


def test_a_job_that_is_removed_while_it_runs(
    server: Server, comfy: Comfy, workers: Make, queue: Broker
) -> None:
    """From RQ's dashboard, say: the worker goes on with the next one."""
    worker = workers(server, comfy).taking()
    job = queue.submit(submission(seconds=1.5))
    until(comfy.executed, what="it runs")
    server.client.delete(f"rq:job:{job.id}")
    assert ended(queue, queue.submit(submission())).state == "completed"
    assert "was removed" in worker.said() or "not this worker's" in worker.said()
    server.client.delete(f"comfy:job:{job.id}")
    consistent(server.client)


def test_it_says_to_health_what_it_does(server: Server, comfy: Comfy, workers: Make, queue: Broker) -> None:
    worker = workers(server, comfy).taking()
    state = Path(worker.environ["COMFYWORK_STATE"])
    job = queue.submit(submission(seconds=1.5))
    until(lambda: state.exists() and json.loads(state.read_text())["job"] == job.id, what="busy")
    ended(queue, job)
    until(lambda: json.loads(state.read_text())["state"] == "idle", what="idle")
