"""A job as RQ keeps it: JSON, never pickle, and never a function that Redis names.

RQ imports whatever function's name it finds in a job. Whoever can write to Redis could then run any code on every
worker. A job of this class is data alone: there is nothing to call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from rq.exceptions import DeserializationError
from rq.job import Job as RqJob
from rq.queue import Queue as RqQueue
from rq.serializers import JSONSerializer

from comfywork.errors import ComfyworkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

OURS = "comfywork"
"""In a job's `extra`: what is meant for its worker."""
FUNCTION = "comfywork.generate"
"""What stands where RQ expects a function. There is none of this name."""


class ForeignJobError(ComfyworkError):
    """Somebody put something into the queue that is no job of ours."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is to do."""

    workflow: dict[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    """A file's name in the workflow → its key in the storage."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """ComfyUI's extra_data, such as what it writes into a PNG."""

    @property
    def ours(self) -> Mapping[str, Any]:
        """What the job asks of its worker, and not of ComfyUI: trail, previews (true or false), targets (node ids)."""
        found = self.extra.get(OURS)
        return found if isinstance(found, dict) else {}

    def as_dict(self) -> dict[str, Any]:
        return {"workflow": self.workflow, "inputs": dict(self.inputs), "extra": dict(self.extra)}


class Job(RqJob):
    @property
    def func(self) -> NoReturn:
        raise ForeignJobError("a job of this queue names no function")

    def perform(self) -> NoReturn:
        raise ForeignJobError("a job of this queue is not a function to call")

    @property
    def task(self) -> Task:
        """ForeignJobError when it is not ours."""
        try:
            name, instance, arguments, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except (DeserializationError, TypeError, ValueError):
            raise ForeignJobError(f"{self.id} does not hold JSON, and nothing else is read") from None
        if name != FUNCTION or instance is not None or arguments:
            raise ForeignJobError(f"{self.id} asks for the function {name!r}, and nothing is ever called")
        try:
            task = Task(workflow=kwargs["workflow"], inputs=kwargs["inputs"], extra=kwargs["extra"])
        except (KeyError, TypeError):
            raise ForeignJobError(f"{self.id} has no workflow") from None
        if (
            not isinstance(task.workflow, dict)
            or not isinstance(task.inputs, dict)
            or not isinstance(task.extra, dict)
        ):
            raise ForeignJobError(f"{self.id} has no workflow")
        return task


class Queue(RqQueue):
    job_class = Job


def queue(name: str, connection: Redis) -> Queue:
    return Queue(name, connection=connection, serializer=JSONSerializer, job_class=Job)


def fetch(job_id: str, connection: Redis) -> Job | None:
    """The job, or None. What it holds is looked at by `task` only."""
    return parse(job_id, connection.hgetall(Job.key_for(job_id)), connection)


def parse(job_id: str, raw: Mapping[Any, Any], connection: Redis) -> Job | None:
    """The job of what Redis holds of it; None when there is nothing. Never fails: it may be somebody's joke."""
    if b"data" not in raw:
        return None
    job = Job(job_id, connection=connection, serializer=JSONSerializer)
    try:
        job.restore(raw)
    except Exception:  # noqa: BLE001 - whatever RQ raises for what it did not write
        job = Job(job_id, connection=connection, serializer=JSONSerializer)
        job.data = raw[b"data"]
        job.origin = raw.get(b"origin", b"").decode(errors="replace")
    # Nothing that somebody else wrote beside the data is ever acted on.
    job._success_callback_name = job._failure_callback_name = job._stopped_callback_name = None
    job.webhooks = []
    return job
