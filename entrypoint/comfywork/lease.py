"""Who may do what with a job: leases with fencing tokens, and every change of a job's state as one transaction.

A job's lease is the truth about who has it; queues and RQ's registries follow. Each change watches the lease and is
refused when its token is not the caller's any more: a worker that was paused and comes back publishes nothing.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import redis
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry

from comfywork import durations, names, scripts
from comfywork.errors import ComfyworkError
from comfywork.jobs import Job, Task, fetch, queue
from comfywork.link import text
from comfywork.views import Failure, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.client import Pipeline

    from comfywork.settings import Settings

PATIENCE = 0.5  # seconds that a job waits for the idle worker which has its models loaded
_BATCH = 100  # expired leases looked at in one go
_BELLS = 64


class LeaseLostError(ComfyworkError):
    """The job is another's by now, or has ended; what was done for it counts nothing."""


class UsurpedError(ComfyworkError):
    """Another process goes by this worker's id."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Lease:
    job: str
    queue: str
    token: int
    attempts: int
    """This one included."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Something in a queue that is no job of ours."""

    job: str
    queue: str


@dataclass(frozen=True, kw_only=True)
class Beat:
    named: bool
    """The worker's id is still its own."""
    held: bool
    """The lease still is."""
    cancel: bool


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The result that was decided on, whoever publishes it: its token and its outputs."""

    token: int
    outputs: tuple[Output, ...]

    @property
    def as_json(self) -> str:
        return json.dumps({"token": self.token, "outputs": [asdict(output) for output in self.outputs]})

    @classmethod
    def of_json(cls, text: str | bytes) -> Sealed:
        found = json.loads(text)
        return cls(token=int(found["token"]), outputs=tuple(Output(**output) for output in found["outputs"]))


class Ledger:
    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._redis, self._settings = connection, settings
        self._take = connection.register_script(scripts.TAKE)
        self._beat = connection.register_script(scripts.BEAT)
        self._expired = connection.register_script(scripts.EXPIRED)

    # --- taking and keeping ----------------------------------------------------------------------

    def own(self, worker: str, nonce: str) -> bool:
        """Whether this process may call itself so; its heartbeats keep the name."""
        key, ttl = names.owner(worker), int(self._settings.heartbeat_timeout * 1000)
        if self._redis.set(key, nonce, nx=True, px=ttl):
            return True
        return text(self._redis.get(key)) == nonce

    def disown(self, worker: str, nonce: str) -> None:
        """The worker is gone, in good order."""
        with self._redis.pipeline() as pipe:
            pipe.watch(names.owner(worker))
            if text(pipe.get(names.owner(worker))) != nonce:
                return
            pipe.multi()
            pipe.delete(names.owner(worker), names.worker(worker))
            pipe.zrem("comfy:idle", worker)
            with contextlib.suppress(redis.WatchError):
                pipe.execute()

    def take(self, worker: str, nonce: str) -> Lease | Foreign | Literal["none", "passed"]:
        """The next job for this worker, or why there is none. UsurpedError when its name is another's."""
        settings = self._settings
        answer = self._take(
            args=[
                worker,
                nonce,
                settings.heartbeat_timeout,
                settings.ageing,
                PATIENCE,
                max(2 * settings.poll_interval, 1.0),
            ]
        )
        found = [text(value) for value in answer]
        match found[0]:
            case "job":
                return Lease(job=found[1], queue=found[2], token=int(found[3]), attempts=int(found[4]))
            case "foreign":
                return Foreign(job=found[1], queue=found[2])
            case "usurped":
                raise UsurpedError(
                    f"another process goes by the name {worker}", hint="give each its own WORKER_ID"
                )
            case "passed":
                return "passed"
            case _:
                return "none"

    def wait(self, seconds: float) -> None:
        """Until a bell rings, or that many seconds are over."""
        self._redis.blpop([names.BELL], timeout=seconds)

    def ring(self) -> None:
        """Wake the worker that has waited longest."""
        with self._redis.pipeline() as pipe:
            ring(pipe)
            pipe.execute()

    def beat(
        self,
        worker: str,
        nonce: str,
        lease: Lease | None,
        meta: Mapping[str, Any] | None,
        said: Mapping[str, Any],
    ) -> Beat:
        """One heartbeat; `said` is what the worker says of itself, `meta` what it says of its job."""
        pairs = [part for name, value in said.items() for part in (name, value)]
        answer = self._beat(
            args=[
                worker,
                nonce,
                self._settings.heartbeat_timeout,
                lease.job if lease else "",
                lease.token if lease else 0,
                json.dumps(meta) if meta else "",
                *pairs,
            ]
        )
        return Beat(named=bool(answer[0]), held=bool(answer[1]), cancel=bool(answer[2]))

    # --- the ends of a job -----------------------------------------------------------------------

    def seal(self, lease: Lease, outputs: Sequence[Output], token: int) -> Sealed:
        """Decide on this result, staged under `token`. What was decided before stays: then that is the answer."""
        mine = Sealed(token=token, outputs=tuple(outputs))
        decided = mine

        def write(pipe: Pipeline, job: Job, _now: float) -> None:
            nonlocal decided
            if before := self._redis.hget(names.job(job.id), "sealed"):
                decided = Sealed.of_json(before)
            else:
                pipe.hset(names.job(job.id), "sealed", mine.as_json)

        self._change(lease.job, lease.token, write)
        return decided

    def sealed(self, job_id: str) -> Sealed | None:
        found = self._redis.hget(names.job(job_id), "sealed")
        return Sealed.of_json(found) if found else None

    def finish(self, lease: Lease, sealed: Sealed) -> None:
        """Its outputs are published: the job has succeeded."""
        ttl = int(self._settings.result_ttl)

        def write(pipe: Pipeline, job: Job, now: float) -> None:
            job._result = {"outputs": [asdict(output) for output in sealed.outputs]}
            job._handle_success(ttl, pipe, worker_name=self._worker(job))
            job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
            self._end(pipe, job, "completed", now, ttl)

        self._change(lease.job, lease.token, write)

    def fail(self, job_id: str, token: int, failure: Failure) -> None:
        """It has failed for good."""

        def write(pipe: Pipeline, job: Job, now: float) -> None:
            self._failed(pipe, job, failure, now)

        self._change(job_id, token, write)

    def cancelled(self, job_id: str, token: int) -> None:
        def write(pipe: Pipeline, job: Job, now: float) -> None:
            self.end_cancelled(pipe, job, now)

        self._change(job_id, token, write)

    def hand_back(self, job_id: str, token: int, why: str, *, counted: bool = True) -> None:
        """Another worker may take it, before the others of its queue. An attempt that does not count is given back."""

        def write(pipe: Pipeline, job: Job, now: float) -> None:
            if self._redis.hexists(names.job(job.id), "cancel"):
                self.end_cancelled(pipe, job, now)
                return
            pipe.hset(names.job(job.id), mapping={"note": why, "worker": ""})
            if not counted:
                pipe.hincrby(names.job(job.id), "attempts", -1)
            pipe.hincrby(names.COUNTERS, "retries" if counted else "handed_back", 1)
            job.worker_name = ""
            job.enqueued_at = datetime.fromtimestamp(now, UTC)
            queue(job.origin, self._redis)._enqueue_job(job, pipeline=pipe, at_front=True)
            pipe.persist(job.key)
            self._let_go(pipe, job)
            wake(pipe, job.origin)
            tell(pipe, job.id, "pending")

        self._change(job_id, token, write)

    def reap(self) -> list[str]:
        """Hand back, or fail, what silent workers hold. The job ids."""
        answer = [text(part) for part in self._expired(args=[_BATCH])]
        reaped = []
        for job_id, token, worker in zip(answer[::3], answer[1::3], answer[2::3], strict=True):
            # Expired is decided by Redis in one step; whoever is back by now has a new token, or keeps this one.
            with contextlib.suppress(LeaseLostError):
                self._reap(job_id, int(token), worker)
                reaped.append(job_id)
        return reaped

    def _reap(self, job_id: str, token: int, worker: str) -> None:
        seconds = self._settings.heartbeat_timeout
        why = f"worker {worker} was silent for {seconds:g} s"
        attempts = int(self._redis.hget(names.job(job_id), "attempts") or 0)
        if attempts < self._settings.attempts:
            self.hand_back(job_id, token, why)
            return
        self.fail(
            job_id,
            token,
            Failure(kind="worker", message=f"{attempts} workers ended while they ran it; the last: {why}"),
        )

    def refuse(self, foreign: Foreign, why: str) -> None:
        """Put it where failed jobs are, unread."""
        job = fetch(foreign.job, self._redis)
        if job is None:
            return
        with self._redis.pipeline() as pipe:
            job.origin = foreign.queue
            job.set_status(JobStatus.FAILED, pipeline=pipe)
            job.failed_job_registry.add(
                job, ttl=int(self._settings.result_ttl), exc_string=why, pipeline=pipe
            )
            pipe.hincrby(names.COUNTERS, "failed:foreign", 1)
            pipe.execute()

    def restore(self, lease: Lease, task: Task, worker: str, kept: Mapping[str, str]) -> Lease:
        """Redis has lost its data while the job ran: write it again, as this worker's, so that its result counts.

        `kept` is what `names.job` held of it. LeaseLostError when the job is there after all.
        """
        job = queue(lease.queue, self._redis).create_job(
            "comfywork.generate", kwargs=task.as_dict(), job_id=lease.job, timeout=-1, description=lease.job
        )
        with self._redis.pipeline() as pipe:
            pipe.watch(names.lease(lease.job), job.key)
            if pipe.exists(names.lease(lease.job), job.key):
                raise LeaseLostError(f"{lease.job} was submitted again")
            seconds, micro = pipe.time()
            token = int(pipe.incr(names.FENCE))
            pipe.multi()
            job.origin = lease.queue
            job.set_status(JobStatus.STARTED, pipeline=pipe)
            job.save(pipeline=pipe)
            pipe.hset(
                names.job(lease.job),
                mapping={**dict[Any, Any](kept), "attempts": lease.attempts, "worker": worker},
            )
            pipe.hset(
                names.lease(lease.job),
                mapping={"token": token, "worker": worker, "queue": lease.queue, "charged": 0},
            )
            pipe.zadd(names.LEASES, {lease.job: seconds + micro / 1e6 + self._settings.heartbeat_timeout})
            pipe.hset("comfy:held", worker, lease.job)
            remember(pipe, lease.job, kept["tenant"], float(kept["since"]))
            try:
                pipe.execute()
            except redis.WatchError:
                raise LeaseLostError(f"{lease.job} was submitted again") from None
        return Lease(job=lease.job, queue=lease.queue, token=token, attempts=lease.attempts)

    # --- what all of them do ---------------------------------------------------------------------

    def _change(self, job_id: str, token: int, write: Callable[[Pipeline, Job, float], None]) -> None:
        """Run `write` inside a transaction that holds only while the lease is the caller's."""
        while True:
            with self._redis.pipeline() as pipe:
                pipe.watch(names.lease(job_id))
                held = pipe.hget(names.lease(job_id), "token")
                if held is None or int(held) != token:
                    # The answer to our own change may have been lost with the connection.
                    if text(self._redis.hget(names.job(job_id), "ended_by")) == str(token):
                        return
                    raise LeaseLostError(f"{job_id} is not this worker's any more")
                job = fetch(job_id, self._redis)
                if job is None:
                    raise LeaseLostError(f"{job_id} was removed")
                seconds, micro = pipe.time()
                pipe.multi()
                write(pipe, job, seconds + micro / 1e6)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return

    def _failed(self, pipe: Pipeline, job: Job, failure: Failure, now: float) -> None:
        ttl = int(self._settings.result_ttl)
        job.failure_ttl = ttl
        job.ended_at = datetime.fromtimestamp(now, UTC)
        job.set_status(JobStatus.FAILED, pipeline=pipe)
        job._handle_failure(f"{failure.kind}: {failure.message}", pipe, worker_name=self._worker(job))
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
        pipe.hset(names.job(job.id), "failure", json.dumps(asdict(failure)))
        pipe.hincrby(names.COUNTERS, f"failed:{failure.kind}", 1)
        self._end(pipe, job, "failed", now, ttl)

    def end_cancelled(self, pipe: Pipeline, job: Job, now: float) -> None:
        """Its end by request, within the caller's transaction."""
        ttl = int(self._settings.result_ttl)
        job.ended_at = datetime.fromtimestamp(now, UTC)
        job.set_status(JobStatus.CANCELED, pipeline=pipe)
        job.save(pipeline=pipe, include_meta=False)
        CanceledJobRegistry(job.origin, connection=self._redis, job_class=Job).add(job, ttl, pipeline=pipe)
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
        self._end(pipe, job, "cancelled", now, ttl)

    def _end(self, pipe: Pipeline, job: Job, state: str, now: float, ttl: int) -> None:
        known = self._redis.hmget(names.job(job.id), "tenant", "begun", "since")
        lease = self._redis.hmget(names.lease(job.id), "charged", "begun", "token")
        tenant = text(known[0])
        pipe.hset(names.job(job.id), mapping={"ended": now, "ended_by": text(lease[2])})
        pipe.expire(names.job(job.id), ttl)
        pipe.hincrby(names.COUNTERS, state, 1)
        if tenant and lease[1]:
            took = max(0.0, now - float(lease[1]))
            pipe.zincrby(names.SERVED, took - float(lease[0] or 0), tenant)
            # What the tenant's next job may cost: mostly what this one did.
            before = float(self._redis.hget("comfy:clock", tenant) or took)
            pipe.hset("comfy:clock", tenant, round(0.5 * before + 0.5 * took, 4))
            durations.count(pipe, "took", took)
            if known[1] and known[2]:
                durations.count(pipe, "waited", float(known[1]) - float(known[2]))
        self._let_go(pipe, job)
        tell(pipe, job.id, state)

    def _let_go(self, pipe: Pipeline, job: Job) -> None:
        worker, token, held = "", "", None
        found = self._redis.hmget(names.lease(job.id), "worker", "token")
        if found[0]:
            worker, token = text(found[0]), text(found[1])
            held = self._redis.hget("comfy:held", worker)
        pipe.delete(names.lease(job.id))
        pipe.zrem(names.LEASES, job.id)
        pipe.zrem(f"rq:wip:{job.origin}", f"{job.id}:{token}")
        if text(held) == job.id:
            pipe.hdel("comfy:held", worker)

    def _worker(self, job: Job) -> str:
        return text(self._redis.hget(names.lease(job.id), "worker"))


def ring(pipe: Pipeline) -> None:
    pipe.rpush(names.BELL, 1)
    pipe.ltrim(names.BELL, 0, _BELLS - 1)


def wake(pipe: Pipeline, queue_name: str) -> None:
    """Somebody should look at this queue."""
    pipe.sadd(names.WAITING, queue_name)
    ring(pipe)


def tell(pipe: Pipeline, job_id: str, state: str) -> None:
    """Whoever watches learns of it; nobody depends on it."""
    pipe.publish(names.EVENTS, json.dumps({"job": job_id, "state": state}))


def remember(pipe: Pipeline, job_id: str, tenant: str, since: float) -> None:
    """The tenant's own list of jobs."""
    pipe.zadd(names.jobs_of(tenant), {job_id: since})
    pipe.sadd(names.TENANTS, tenant)


def generation(connection: redis.Redis) -> str:
    """A text that changes when Redis has lost its data."""
    connection.set(names.GENERATION, uuid.uuid4().hex, nx=True)
    found = connection.get(names.GENERATION)
    return text(found)
