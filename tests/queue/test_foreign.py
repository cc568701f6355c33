"""Whoever can write to Redis must not run code on a worker: RQ would import any function's name it finds."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import rq
from queuekit import Comfy, Server, Worker, consistent, ended, settings_of, submission, until
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from comfywork.broker import Broker
from comfywork.lease import Foreign, Lease, Ledger

Make = Callable[..., Worker]
QUEUE = "comfy.t1.normal"


@pytest.mark.parametrize("serializer", [None, JSONSerializer], ids=["pickle", "json"])
def test_a_function_that_rq_enqueued_is_never_called(
    server: Server, comfy: Comfy, workers: Make, tmp_path: Path, serializer: object
) -> None:
    """Not the function, no callback of it, no webhook; it ends where failed jobs are, and the others go on."""
    trap = tmp_path / "called"
    foreign = rq.Queue(QUEUE, connection=server.client, serializer=serializer).enqueue(
        os.system,
        f"touch {trap}",
        on_success=rq.Callback("os.system"),
        on_failure=rq.Callback("os.system"),
        on_stopped=rq.Callback("os.system"),
        retry=rq.Retry(max=3),
    )
    broker = Broker(server.client, settings_of(server))
    worker = workers(server, comfy).taking()
    until(
        lambda: server.client.hget(f"rq:job:{foreign.id}", "status") == b"failed", what="refused", seconds=30
    )
    assert ended(broker, broker.submit(submission())).state == "completed"
    assert not trap.exists()
    assert comfy.executed()
    assert len(comfy.executed()) == 1
    assert server.client.zscore(f"rq:failed:{QUEUE}", foreign.id)
    assert foreign.id in FailedJobRegistry(QUEUE, connection=server.client).get_job_ids()
    assert "is no job of ours" in worker.said()
    assert not server.client.exists(f"comfy:job:{foreign.id}", f"comfy:lease:{foreign.id}")


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(("os.system", None, ("touch /tmp/never",), {})),
        b'["os.system", null, ["touch /tmp/never"], {}]',
        b'["comfywork.generate", "x", [], {"workflow": {}, "inputs": {}, "extra": {}}]',
        b'["comfywork.generate", null, [], {"workflow": [], "inputs": {}, "extra": {}}]',
        b'["comfywork.generate", null, [], {}]',
        b"null",
        b"\xff\x00 nonsense",
        b"",
    ],
)
def test_a_job_of_ours_whose_data_somebody_changed(
    server: Server, comfy: Comfy, workers: Make, data: bytes
) -> None:
    broker = Broker(server.client, settings_of(server))
    job = broker.submit(submission())
    server.client.hset(f"rq:job:{job.id}", "data", data)
    server.client.hset(f"rq:job:{job.id}", "failure_callback_name", "os.system")
    server.client.hset(f"rq:job:{job.id}", "dependency_ids", "not json")
    workers(server, comfy).taking()
    view = ended(broker, job)
    assert view.state == "failed"
    assert view.failure is not None
    assert view.failure.kind == "foreign"
    assert not comfy.executed()


def test_what_rq_calls_registries_is_left_alone_by_its_own_cleaning(
    connection: redis.Redis, broker: Broker, ledger: Ledger
) -> None:
    """A dashboard cleans RQ's registries; a job that runs is none of its business."""
    job = broker.submit(submission())
    ledger.own("w", "w")
    lease = ledger.take("w", "w")
    assert isinstance(lease, Lease)
    queue = rq.Queue(QUEUE, connection=connection, serializer=JSONSerializer)
    registry = StartedJobRegistry(QUEUE, connection=connection, serializer=JSONSerializer)
    for _ in range(2):
        registry.cleanup()
        queue.failed_job_registry.cleanup()
        queue.finished_job_registry.cleanup()
        assert [entry.partition(":")[0] for entry in registry.get_job_ids()] == [job.id]
    assert broker.status(job.id).state == "processing"
    ledger.finish(lease, ledger.seal(lease, (), lease.token))
    assert queue.finished_job_registry.get_job_ids() == [job.id]
    consistent(connection)


def test_a_failed_job_that_the_dashboard_puts_back_runs_again(
    connection: redis.Redis, broker: Broker, ledger: Ledger
) -> None:
    job = broker.submit(submission())
    ledger.own("w", "w")
    lease = ledger.take("w", "w")
    assert isinstance(lease, Lease)
    from comfywork.views import Failure

    ledger.fail(lease.job, lease.token, Failure(kind="execution", message="no"))
    queue = rq.Queue(QUEUE, connection=connection, serializer=JSONSerializer)
    queue.failed_job_registry.requeue(job.id)
    assert ledger.take("w", "w") == "none"
    ledger.tidy()
    assert [queue.name for queue in rq.Queue.all(connection=connection)] == [QUEUE], "the dashboard shows it"
    again = ledger.take("w", "w")
    assert isinstance(again, Lease)
    assert (again.job, again.attempts, again.first) == (job.id, 1, False)
    ledger.finish(again, ledger.seal(again, (), again.token))
    view = broker.status(job.id)
    assert (view.state, view.failure) == ("completed", None)
    consistent(connection)


def test_refuse_says_why(connection: redis.Redis, broker: Broker, ledger: Ledger) -> None:
    foreign = rq.Queue(QUEUE, connection=connection).enqueue(os.getpid)
    broker.submit(submission())
    ledger.own("w", "w")
    taken = ledger.take("w", "w")
    assert taken == Foreign(job=foreign.id, queue=QUEUE)
    ledger.refuse(taken, "no job of this queue")
    assert "no job of this queue" in str(foreign.latest_result().exc_string)
    assert uuid.UUID(foreign.id)
