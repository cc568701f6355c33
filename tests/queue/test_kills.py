"""kill -9 of the agent at every stage of a job: exactly one result, with the right bytes."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import redis
from queuekit import Comfy, Server, Worker, consistent, ended, settings_of, submission, until

from comfywork.broker import Broker
from comfywork.storage import open_storage

Make = Callable[..., Worker]

_LEDGER, _COMFY = "comfywork.lease:Ledger", "comfywork.comfy:Comfy"
_STORAGE, _EXECUTION = "comfywork.storage.volume:VolumeStorage", "comfywork.execution:Execution"
# (step, attempts that are counted, prompts that ComfyUI executes)
_STAGES = [
    (f"{_LEDGER}.take|before|1", 1, 1),
    (f"{_LEDGER}.take|after|1", 2, 1),
    ("comfywork.agent:fetch|before|1", 2, 1),
    ("comfywork.agent:fetch|after|1", 2, 1),
    (f"{_EXECUTION}._placed|before|1", 2, 1),
    (f"{_COMFY}.upload|before|1", 2, 1),
    (f"{_COMFY}.upload|after|1", 2, 1),
    (f"{_COMFY}.submit|before|1", 2, 1),
    (f"{_COMFY}.submit|after|1", 2, 1),
    (f"{_COMFY}._listen|after|4", 2, 1),
    (f"{_COMFY}.follow|after|1", 2, 1),
    (f"{_STORAGE}.stage|before|1", 2, 1),
    (f"{_STORAGE}.stage|after|1", 2, 1),
    (f"{_STORAGE}.stage|before|2", 2, 1),
    (f"{_STORAGE}.stage|after|2", 2, 1),
    (f"{_LEDGER}.seal|before|1", 2, 1),
    (f"{_LEDGER}.seal|after|1", 2, 1),
    (f"{_STORAGE}.publish|before|1", 2, 1),
    (f"{_STORAGE}._move|after|3", 2, 1),
    (f"{_STORAGE}.publish|after|1", 2, 1),
    (f"{_LEDGER}.finish|before|1", 2, 1),
    (f"{_LEDGER}.finish|after|1", 1, 1),
    (f"{_EXECUTION}.clean|before|1", 1, 1),
    (f"{_EXECUTION}.clean|after|1", 1, 1),
]
CONTENT = b"what the picture shows"


def submitted(broker: Broker, worker: Worker) -> Any:
    """A job with an input and two outputs."""
    storage = open_storage(worker.environ)
    stored = storage.put_input("t1", "in.png", BytesIO(CONTENT), len(CONTENT), "image/png")
    return broker.submit(submission(input="in.png", count=2, seconds=0.5, inputs={"in.png": stored.key}))


def right(view: Any, worker: Worker) -> None:
    """Completed, and every output is in the storage as the manifest says, and nothing else is."""
    assert view.state == "completed", view
    storage = open_storage(worker.environ)
    assert len(view.outputs) == 2
    for output in view.outputs:
        with storage.open(output.key) as opened:
            content = opened.read()
        assert content == CONTENT
        assert output.sha256 == hashlib.sha256(content).hexdigest()
        assert output.size == len(content)
    assert {one.key for one in storage.keys("t1/") if "/inputs/" not in one.key} == {
        output.key for output in view.outputs
    }


@pytest.mark.parametrize(("step", "attempts", "prompts"), _STAGES, ids=[stage[0] for stage in _STAGES])
def test_the_restarted_agent_ends_the_job(
    server: Server, comfy: Comfy, workers: Make, step: str, attempts: int, prompts: int
) -> None:
    broker, worker = Broker(server.client, settings_of(server)), workers(server, comfy)
    job = submitted(broker, worker)
    worker.start(STEP=f"{step}|KILL")
    assert worker.ended() == -signal.SIGKILL, worker.said()
    worker.taking()
    view = ended(broker, job)
    right(view, worker)
    assert view.attempts == attempts, worker.said()
    assert len(comfy.executed()) == prompts, worker.said()
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.said()
    consistent(server.client)
    assert not list(Path(comfy.folder / "output").glob("*/*")), "left in ComfyUI's folder"


_ELSEWHERE = [
    (f"{_LEDGER}.take|after|1", 2),
    (f"{_COMFY}._listen|after|4", 2),
    (f"{_STORAGE}.stage|after|1", 2),
    (f"{_LEDGER}.seal|after|1", 2),
    (f"{_STORAGE}._move|after|3", 2),
    (f"{_STORAGE}.publish|after|1", 2),
    (f"{_LEDGER}.finish|after|1", 1),
]


@pytest.mark.parametrize(("step", "attempts"), _ELSEWHERE, ids=[stage[0] for stage in _ELSEWHERE])
def test_another_worker_ends_the_job(
    server: Server, comfies: Callable[[], Comfy], workers: Make, step: str, attempts: int
) -> None:
    broker, worker = Broker(server.client, settings_of(server)), workers(server, comfies(), "w1")
    other = workers(server, comfies(), "w2")
    job = submitted(broker, worker)
    worker.start(STEP=f"{step}|KILL")
    assert worker.ended() == -signal.SIGKILL, worker.said()
    other.taking()
    view = ended(broker, job)
    right(view, other)
    assert view.attempts == attempts
    assert view.worker == ("w1" if attempts == 1 else "w2")
    consistent(server.client)


@pytest.mark.parametrize("which", range(1, 5))
@pytest.mark.parametrize("when", ["before", "after"])
def test_at_every_write_to_redis(server: Server, comfy: Comfy, workers: Make, which: int, when: str) -> None:
    """Whatever the steps are called: before and after each transaction of a job."""
    broker, worker = Broker(server.client, settings_of(server)), workers(server, comfy)
    job = submitted(broker, worker)
    worker.start(STEP=f"comfywork.lease:Ledger._change|{when}|{which}|KILL")
    # Two transactions are all that a job needs; where there is no third, nobody dies.
    if which <= 2:
        assert worker.ended() == -signal.SIGKILL, worker.said()
        worker.start()
    right(ended(broker, job), worker)
    consistent(server.client)


@pytest.mark.parametrize(
    "step",
    [
        "comfywork.execution:Execution._stored|before|1",
        f"{_LEDGER}.seal|before|1",
        f"{_STORAGE}.publish|before|1",
        f"{_LEDGER}.finish|before|1",
    ],
)
def test_a_paused_worker_that_comes_back_changes_nothing(
    server: Server, comfies: Callable[[], Comfy], workers: Make, step: str, tmp_path: Path
) -> None:
    broker, paused = Broker(server.client, settings_of(server)), workers(server, comfies(), "w1")
    other = workers(server, comfies(), "w2")
    job = submitted(broker, paused)
    paused.start(STEP=f"{step}|STOP", STEP_FILE=str(tmp_path / "reached"))
    until((tmp_path / "reached").exists, what=step)
    other.taking()
    view = ended(broker, job)
    right(view, other)
    assert view.worker == "w2"
    before = server.client.hgetall(f"comfy:job:{job.id}")
    paused.signal(signal.SIGCONT)
    until(lambda: "is dropped" in paused.said(), what="the paused worker notices")
    right(broker.status(job.id), other)
    assert server.client.hgetall(f"comfy:job:{job.id}") == before
    assert int(server.client.hget("comfy:counters", "completed") or 0) == 1
    # And it takes the next one as if nothing had been.
    other.signal(signal.SIGTERM)
    assert other.ended() == 0
    assert ended(broker, submitted(broker, paused)).worker == "w1"
    consistent(server.client)


@pytest.mark.parametrize(
    ("failing", "step"),
    [("fail", f"{_LEDGER}.fail|before|1"), ("die", f"{_LEDGER}.hand_back|before|1")],
)
def test_a_paused_worker_neither_fails_nor_hands_back(
    server: Server, comfies: Callable[[], Comfy], workers: Make, failing: str, step: str, tmp_path: Path
) -> None:
    """What it was about to say of the job is not true any more."""
    broker = Broker(server.client, settings_of(server))
    mine, theirs = comfies(), comfies()
    paused, other = workers(server, mine, "w1"), workers(server, theirs, "w2")
    job = broker.submit(submission(seconds=0.3, **{failing: "yes"}))
    paused.start(STEP=f"{step}|STOP", STEP_FILE=str(tmp_path / "reached"))
    until((tmp_path / "reached").exists, what=step)
    # Meanwhile the job is another's: taken over by hand, as the reaper would.
    from comfywork.lease import Lease, Ledger

    ledger = Ledger(server.client, settings_of(server))
    token = int(server.client.hget(f"comfy:lease:{job.id}", "token"))
    ledger.hand_back(job.id, token, "test")
    assert ledger.own("x", "x")
    taken = ledger.take("x", "x")
    assert isinstance(taken, Lease)
    paused.signal(signal.SIGCONT)
    until(lambda: "is dropped" in paused.said(), what="the paused worker notices")
    assert broker.status(job.id).state == "processing"
    assert int(server.client.hget(f"comfy:lease:{job.id}", "token")) == taken.token
    del other


def test_redis_is_asked_once_more_when_an_answer_is_lost(
    server: Server, connection: redis.Redis, broker: Broker
) -> None:
    """The same process takes twice: the same job, a new token, and no attempt counted that was not made."""
    from comfywork.lease import Lease, LeaseLostError, Ledger

    ledger = Ledger(connection, settings_of(server))
    job = broker.submit(submission())
    broker.submit(submission())
    assert ledger.own("w1", "n")
    first, second = ledger.take("w1", "n"), ledger.take("w1", "n")
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert first.job == second.job == job.id
    assert second.token > first.token
    assert second.attempts == 1
    with pytest.raises(LeaseLostError):
        ledger.seal(first, (), first.token)
    # Another process of the same worker: the first was killed, and that counts.
    third = Ledger(connection, settings_of(server)).take("w1", "n")
    assert isinstance(third, Lease)
    assert third.job == job.id
    assert third.attempts == 2
    consistent(connection)
