"""What RQ's own tools, such as its dashboard, see of the queue."""

from __future__ import annotations

from frontkit import Queue, Worker
from rq import Queue as RqQueue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer


def test_rq_sees_queues_and_registries(queue: Queue, worker: Worker) -> None:
    done = queue.submit()
    worker.complete(worker.take())
    failed = queue.submit()
    worker.fail(worker.take())
    cancelled = queue.submit()
    queue.broker.cancel(cancelled.id)
    waiting = queue.submit("user002", priority="low")
    connection = queue.broker.connection
    found = {each.name: each for each in RqQueue.all(connection, serializer=JSONSerializer)}
    assert set(found) == {"comfy.user001.normal", "comfy.user002.low"}
    assert found["comfy.user002.low"].job_ids == [waiting.id]
    for registry, job in (
        (FinishedJobRegistry, done),
        (FailedJobRegistry, failed),
        (CanceledJobRegistry, cancelled),
    ):
        assert registry("comfy.user001.normal", connection=connection).get_job_ids() == [job.id]
