"""Who may do what with a job: leases with fencing tokens, and every change of a job's state as one transaction.

A job's lease is the truth about who has it; queues and RQ's registries follow. Each change watches the lease and is
refused when its token is not the caller's any more: a worker that was paused and comes back publishes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import redis
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from comfywork import durations, names, scripts
from comfywork.errors import ComfyworkError
from comfywork.jobs import FUNCTION, Job, Task, parse, queue
from comfywork.link import TIMEOUT, text
from comfywork.views import Failure, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.client import Pipeline

    from comfywork.settings import Settings

PATIENCE = 0.5  # seconds that a job waits for the idle worker which has its models loaded
LONGEST_WAIT = TIMEOUT / 2  # seconds; a wait as long as the socket's timeout would look like a dead Redis
_GONE = 3600.0  # seconds after which an idle worker that says nothing is forgotten
_BATCH = 100  # expired leases looked at in one go
_BELLS = 64
_VERSION = (6, 2, 0)  # at least; what RQ does does not depend on it beyond 5


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
    first: bool = False
    """Nobody has had the job before: no ComfyUI can know it."""


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


@dataclass(frozen=True, kw_only=True)
class Held:
    """A job as Redis has it, at one moment of a transaction that holds only while nobody else changes it."""

    job: Job
    ours: Mapping[str, str]
    """`names.job`"""
    lease: Mapping[str, str]
    """`names.lease`; empty where nobody has it."""
    now: float


class Ledger:
    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._redis, self._settings = connection, settings
        # The reaper looks on for the last quarter (see `reap`).
        self._lease_seconds = 0.75 * settings.heartbeat_timeout
        self._life = uuid.uuid4().hex
        self._suspects: dict[tuple[str, int], float] = {}
        self._token = connection.register_script(scripts.NEXT)
        self._tidy = connection.register_script(scripts.TIDY)
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
            pipe.zrem(names.IDLE, worker)
            with contextlib.suppress(redis.WatchError):
                pipe.execute()

    def take(self, worker: str, nonce: str) -> Lease | Foreign | Literal["none", "passed"]:
        """The next job for this worker, or why there is none. UsurpedError when its name is another's."""
        settings = self._settings
        answer = self._take(
            args=[
                worker,
                nonce,
                self._lease_seconds,
                settings.ageing,
                PATIENCE,
                max(2 * settings.poll_interval, 1.0),
                self._life,
                int(settings.result_ttl),
            ]
        )
        found = [text(value) for value in answer]
        match found[0]:
            case "job":
                return Lease(
                    job=found[1],
                    queue=found[2],
                    token=int(found[3]),
                    attempts=int(found[4]),
                    first=found[5] == "1",
                )
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
        self._redis.blpop([names.BELL], timeout=min(seconds, LONGEST_WAIT))

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
                self._lease_seconds,
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

        def write(pipe: Pipeline, held: Held) -> None:
            nonlocal decided
            if before := held.ours.get("sealed"):
                decided = Sealed.of_json(before)
            else:
                decided = mine
                pipe.hset(names.job(held.job.id), "sealed", mine.as_json)

        self._change(lease.job, lease.token, write)
        return decided

    def sealed(self, job_id: str) -> Sealed | None:
        found = self._redis.hget(names.job(job_id), "sealed")
        return Sealed.of_json(found) if found else None

    def finish(self, lease: Lease, sealed: Sealed) -> None:
        """Its outputs are published: the job has succeeded."""
        ttl = int(self._settings.result_ttl)

        def write(pipe: Pipeline, held: Held) -> None:
            job = held.job
            job.ended_at = datetime.fromtimestamp(held.now, UTC)
            job._result = {"outputs": [asdict(output) for output in sealed.outputs]}
            job._handle_success(ttl, pipe, worker_name=held.lease["worker"])
            job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
            # Once more: Redis may have lost what was sealed, and this is where its outputs are looked up.
            pipe.hset(names.job(job.id), "sealed", sealed.as_json)
            self._end(pipe, held, "completed", ttl)

        self._change(lease.job, lease.token, write)

    def fail(self, job_id: str, token: int, failure: Failure) -> None:
        """It has failed for good."""
        self._change(job_id, token, lambda pipe, held: self._failed(pipe, held, failure))

    def cancelled(self, job_id: str, token: int) -> None:
        self._change(job_id, token, self.end_cancelled)

    def hand_back(self, job_id: str, token: int, why: str, *, counted: bool = True) -> None:
        """Another worker may take it, before the others of its queue. An attempt that does not count is given back."""
        self._change(job_id, token, lambda pipe, held: self._back(pipe, held, why, counted=counted))

    def _back(self, pipe: Pipeline, held: Held, why: str, *, counted: bool) -> None:
        job, name = held.job, names.job(held.job.id)
        if "cancel" in held.ours:
            self.end_cancelled(pipe, held)
            return
        pipe.hset(name, mapping={"note": why, "worker": ""})
        if not counted:
            pipe.hincrby(name, "attempts", -1)
        pipe.hincrby(names.COUNTERS, "retries" if counted else "handed_back", 1)
        job.worker_name = ""
        enqueue(job, pipe, at_front=True)
        pipe.persist(job.key)
        self._settle(pipe, held)
        self._let_go(pipe, held)
        wake(pipe, job.origin)
        tell(pipe, job.id, "pending")

    def reap(self, grace: float = 0.0) -> list[str]:
        """Hand back, or fail, what silent workers hold. The job ids.

        A lease counts as expired once it has been seen so for `grace` seconds of this process' own. When Redis was
        away, or its clock was set, all leases look expired at once; whoever lives renews its own meanwhile.
        """
        answer = [text(part) for part in self._expired(args=[_BATCH])]
        now = time.monotonic()
        expired = {
            (job_id, int(token)): worker
            for job_id, token, worker in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
        }
        self._suspects = {key: self._suspects.get(key, now) for key in expired}
        reaped = []
        for (job_id, token), worker in expired.items():
            if now - self._suspects[job_id, token] < grace:
                continue
            with contextlib.suppress(LeaseLostError):
                self._reap(job_id, token, worker)
                reaped.append(job_id)
        return reaped

    def _reap(self, job_id: str, token: int, worker: str) -> None:
        why = f"worker {worker} was silent for {self._settings.heartbeat_timeout:g} s"

        def write(pipe: Pipeline, held: Held) -> None:
            attempts = int(held.ours.get("attempts", 0))
            if attempts < self._settings.attempts or "cancel" in held.ours:
                self._back(pipe, held, why, counted=True)
                return
            message = f"{attempts} workers ended while they ran it; the last: {why}"
            self._failed(pipe, held, Failure(kind="worker", message=message))

        self._change(job_id, token, write, expired=True)

    def tidy(self) -> None:
        """Put in order what no job's end does: see `scripts.TIDY`."""
        if int(self._tidy(args=[_GONE])):
            self.ring()

    def refuse(self, foreign: Foreign, why: str) -> None:
        """Say why it failed; it is where failed jobs are since it was taken, and it is never read."""
        job = Job(foreign.job, connection=self._redis, serializer=JSONSerializer)
        job.origin = foreign.queue
        ttl = int(self._settings.result_ttl)
        with self._redis.pipeline() as pipe:
            Result.create_failure(job, ttl, exc_string=why, pipeline=pipe)
            pipe.expire(job.key, ttl)
            pipe.hincrby(names.COUNTERS, "failed:foreign", 1)
            pipe.execute()

    def restore(self, lease: Lease, task: Task, worker: str, kept: Mapping[str, str]) -> Lease:
        """Redis has lost the job while it ran: write it again, as this worker's, so that its result counts.

        `kept` is what `names.job` held of it. LeaseLostError when the job is there after all.
        """
        ttl, timeout = int(self._settings.result_ttl), float(kept.get("timeout", self._settings.job_timeout))
        job = queue(lease.queue, self._redis).create_job(
            FUNCTION,
            kwargs=task.as_dict(),
            job_id=lease.job,
            timeout=int(timeout),
            result_ttl=ttl,
            failure_ttl=ttl,
            description=f"{kept['tenant']} {lease.job}",
            status=JobStatus.STARTED,
        )
        token = int(self._token())
        with self._redis.pipeline() as pipe:
            pipe.watch(names.lease(lease.job), job.key)
            if pipe.exists(names.lease(lease.job), job.key):
                raise LeaseLostError(f"{lease.job} was submitted again")
            seconds, micro = pipe.time()
            now = seconds + micro / 1e6
            pipe.multi()
            job.origin = lease.queue
            job.worker_name = worker
            job.save(pipeline=pipe)
            ours = {**kept, "attempts": lease.attempts, "worker": worker}
            pipe.hset(names.job(lease.job), mapping=dict[Any, Any](ours))
            pipe.hset(
                names.lease(lease.job),
                mapping={"token": token, "worker": worker, "queue": lease.queue, "begun": now, "charged": 0},
            )
            pipe.zadd(names.LEASES, {lease.job: now + self._lease_seconds})
            pipe.hset(names.HELD, worker, lease.job)
            pipe.sadd("rq:queues", f"rq:queue:{lease.queue}")
            pipe.zadd(f"rq:wip:{lease.queue}", {f"{lease.job}:{token}": "+inf"})
            remember(pipe, lease.job, kept["tenant"], float(kept["since"]))
            try:
                pipe.execute()
            except redis.WatchError:
                raise LeaseLostError(f"{lease.job} was submitted again") from None
        return Lease(job=lease.job, queue=lease.queue, token=token, attempts=lease.attempts)

    # --- what all of them do ---------------------------------------------------------------------

    def _change(
        self, job_id: str, token: int, write: Callable[[Pipeline, Held], None], *, expired: bool = False
    ) -> None:
        """Run `write` inside a transaction that holds only while the lease is the caller's, and nothing is asked of it.

        Three round trips, however much is read.
        """
        lease, ours, theirs = names.lease(job_id), names.job(job_id), Job.key_for(job_id)
        while True:
            with self._redis.pipeline() as pipe:
                pipe.watch(lease, ours)
                with self._redis.pipeline(transaction=False) as look:
                    look.hgetall(lease)
                    look.hgetall(ours)
                    look.hgetall(theirs)
                    look.zscore(names.LEASES, job_id)
                    look.time()
                    found = look.execute()
                held, known = texts(found[0]), texts(found[1])
                now = found[4][0] + found[4][1] / 1e6
                if held.get("token") != str(token):
                    # The answer to our own change may have been lost with the connection.
                    if known.get("ended_by") == str(token):
                        return
                    raise LeaseLostError(f"{job_id} is not this worker's any more")
                if expired and found[3] is not None and float(found[3]) > now:
                    raise LeaseLostError(f"the worker of {job_id} is back")
                job = parse(job_id, found[2], self._redis)
                pipe.multi()
                if job is None or not known:
                    # Somebody has removed it, from RQ's dashboard perhaps.
                    queue_name = held.get("queue", "")
                    self._drop(pipe, job_id, held, queue_name)
                else:
                    write(pipe, Held(job=job, ours=known, lease=held, now=now))
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                if job is None or not known:
                    raise LeaseLostError(f"{job_id} was removed")
                return

    def _failed(self, pipe: Pipeline, held: Held, failure: Failure) -> None:
        ttl, job = int(self._settings.result_ttl), held.job
        job.failure_ttl = ttl
        job.ended_at = datetime.fromtimestamp(held.now, UTC)
        job.set_status(JobStatus.FAILED, pipeline=pipe)
        job._handle_failure(
            f"{failure.kind}: {failure.message}", pipe, worker_name=held.lease.get("worker", "")
        )
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
        pipe.hset(names.job(job.id), "failure", json.dumps(asdict(failure)))
        pipe.hincrby(names.COUNTERS, f"failed:{failure.kind}", 1)
        self._end(pipe, held, "failed", ttl)

    def end_cancelled(self, pipe: Pipeline, held: Held) -> None:
        """Its end by request, within the caller's transaction."""
        ttl, job = int(self._settings.result_ttl), held.job
        job.ended_at = datetime.fromtimestamp(held.now, UTC)
        job.set_status(JobStatus.CANCELED, pipeline=pipe)
        job.save(pipeline=pipe, include_meta=False)
        CanceledJobRegistry(job.origin, connection=self._redis, job_class=Job).add(job, ttl, pipeline=pipe)
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
        self._end(pipe, held, "cancelled", ttl)

    def _end(self, pipe: Pipeline, held: Held, state: str, ttl: int) -> None:
        name = names.job(held.job.id)
        pipe.hset(name, mapping={"ended": held.now, "ended_by": held.lease.get("token", "")})
        pipe.expire(name, ttl)
        pipe.hincrby(names.COUNTERS, state, 1)
        took = self._settle(pipe, held)
        if took is not None:
            pipe.hincrbyfloat(names.COUNTERS, f"seconds:{state}", took)
            durations.count(pipe, "took", took)
            if "begun" in held.ours and "since" in held.ours:
                durations.count(pipe, "waited", float(held.ours["begun"]) - float(held.ours["since"]))
        self._let_go(pipe, held)
        tell(pipe, held.job.id, state)

    def _settle(self, pipe: Pipeline, held: Held) -> float | None:
        """Charge the tenant what the job took instead of what it was guessed to take."""
        tenant, begun = held.ours.get("tenant"), held.lease.get("begun")
        if not tenant or not begun:
            return None
        took, charged = max(0.0, held.now - float(begun)), float(held.lease.get("charged", 0))
        pipe.zincrby(names.SERVED, took - charged, tenant)
        # What the tenant's next job may cost: half of it is what this one did.
        pipe.hset(names.COSTS, tenant, round(0.5 * (charged or took) + 0.5 * took, 4))
        return took

    def _let_go(self, pipe: Pipeline, held: Held) -> None:
        self._drop(pipe, held.job.id, held.lease, held.job.origin)

    def _drop(self, pipe: Pipeline, job_id: str, lease: Mapping[str, str], queue_name: str) -> None:
        if lease:
            pipe.hdel(names.HELD, lease["worker"])
            pipe.zrem(f"rq:wip:{queue_name}", f"{job_id}:{lease['token']}")
        pipe.delete(names.lease(job_id))
        pipe.zrem(names.LEASES, job_id)


def texts(found: Mapping[Any, Any]) -> dict[str, str]:
    """A hash of Redis', as texts."""
    return {text(name): text(value) for name, value in found.items()}


def enqueue(job: RqJob, pipe: Pipeline, *, at_front: bool = False) -> None:
    """RQ's own writes for a job that waits; RQ would ask for Redis' version first, each time."""
    found = queue(job.origin, job.connection)
    found.redis_server_version = _VERSION
    found._enqueue_job(job, pipeline=pipe, at_front=at_front)
    pipe.sadd("rq:queues", found.key)  # where RQ's dashboard looks


def ring(pipe: Pipeline) -> None:
    pipe.rpush(names.BELL, 1)
    pipe.ltrim(names.BELL, 0, _BELLS - 1)


def wake(pipe: Pipeline, queue_name: str) -> None:
    """Somebody should look at this queue."""
    pipe.sadd(names.WAITING, queue_name)
    pipe.sadd("rq:queues", f"rq:queue:{queue_name}")  # what RQ's dashboard lists
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
