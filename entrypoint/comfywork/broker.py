"""The queue from outside: submit, look, cancel. What the command line, the HTTP API and any Python program use.

from comfywork.broker import Broker
broker = Broker.of_environment()
job = broker.submit(Submission(tenant="user001", workflow=json.load(open("txt2img.json"))))
broker.wait(job.id)
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import redis

from comfywork import modellists, names, quantities, trail, workflow
from comfywork.errors import (
    ComfyworkError,
    ConfigError,
    ConflictError,
    LimitError,
    QueueError,
    UnknownJobError,
)
from comfywork.jobs import FUNCTION, Job, Task, fetch, queue
from comfywork.lease import Held, Ledger, enqueue, generation, remember, tell, texts, wake
from comfywork.link import connect, said, text
from comfywork.reading import STATES, job_view, worker_view
from comfywork.settings import Settings
from comfywork.views import ENDED, JobView, QueueView, State, WorkerView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from comfywork.names import Priority

_LOOK = 1.0  # seconds between two looks at a job, should an event get lost
_MINUTE = 60.0
_WANTED = 90 * 86400  # seconds: longer than any job waits; it keeps an input from being swept
_TRIES = 3
_AWAY = 300.0  # seconds for which a Redis that does not answer is waited for


@dataclass(frozen=True, kw_only=True)
class Submission:
    workflow: dict[str, Any]
    tenant: str = "default"
    priority: Priority = "normal"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    """The job's, and the prompt's in ComfyUI. Giving one makes a submission safe to repeat."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """A file's name as it stands in the workflow → its key in the storage."""
    timeout: float | None = None
    """Seconds; WORKER_JOB_TIMEOUT unless given."""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Broker:
    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings
        self._ledger = Ledger(connection, settings)

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] | None = None) -> Broker:
        settings = Settings.from_environment(environ)
        return cls(connect(settings.redis), settings)

    # --- submitting ------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> JobView:
        """The job. The same submission again is the same job.

        ConfigError says what is wrong with it, LimitError that the tenant has too much waiting, ConflictError that its
        id belongs to something else.
        """
        tenant = names.check_tenant(submission.tenant)
        job_id = names.check_job(submission.id)
        if submission.priority not in names.PRIORITIES:
            raise ConfigError(f"no priority {submission.priority!r}: {', '.join(names.PRIORITIES)}")
        graph = workflow.checked(submission.workflow, self.settings.max_workflow)
        task = Task(workflow=graph, inputs=dict(submission.inputs), extra=dict(submission.extra))
        self._check_inputs(task, tenant)
        timeout = self._timeout(submission)
        self._check_size(task)
        print_ = _fingerprint(task, tenant, submission.priority, timeout)
        try:
            return self._submit(task, tenant, job_id, submission.priority, timeout, print_)
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None

    def _check_size(self, task: Task) -> None:
        """All of it, as Redis and ComfyUI get it."""
        try:
            size = len(json.dumps(task.as_dict(), allow_nan=False))
        except (ValueError, TypeError, RecursionError):
            raise ConfigError("what goes with the workflow (extra) is not JSON") from None
        if size > 2 * self.settings.max_workflow:
            raise ConfigError(
                f"the workflow and what goes with it (extra) have {quantities.human(size)}, "
                f"and {quantities.human(2 * self.settings.max_workflow)} is the limit",
                hint="QUEUE_MAX_WORKFLOW raises it",
            )

    def _check_inputs(self, task: Task, tenant: str) -> None:
        present = workflow.texts(task.workflow)
        for name, key in task.inputs.items():
            if name not in present:
                raise ConfigError(f"the workflow names no file {name!r}, which is given as an input")
            if not key.startswith(f"{tenant}/inputs/"):
                raise ConfigError(f"input {name!r}: {key!r} is no input of {tenant}")

    def _timeout(self, submission: Submission) -> float:
        if submission.timeout is None:
            return self.settings.job_timeout
        if not 1 <= submission.timeout <= self.settings.job_timeout:
            raise ConfigError(
                f"a timeout is from 1 to {self.settings.job_timeout:g} s, and this is {submission.timeout:g}",
                hint="WORKER_JOB_TIMEOUT raises the limit",
            )
        return submission.timeout

    def _submit(
        self, task: Task, tenant: str, job_id: str, priority: Priority, timeout: float, print_: str
    ) -> JobView:
        name = names.queue(tenant, priority)
        found = queue(name, self.connection)
        job = found.create_job(
            FUNCTION,
            kwargs=task.as_dict(),
            job_id=job_id,
            timeout=int(timeout),
            result_ttl=int(self.settings.result_ttl),
            failure_ttl=int(self.settings.result_ttl),
            description=f"{tenant} {job_id}",
        )
        generation(self.connection)
        while True:
            with self.connection.pipeline() as pipe:
                pipe.watch(job.key, names.job(job_id))
                if pipe.exists(job.key):
                    return self._repeated(job_id, tenant, print_)
                self._check_depth(tenant)
                self._check_rate(tenant)
                seconds, micro = pipe.time()
                now = seconds + micro / 1e6
                pipe.multi()
                pipe.hset(
                    names.job(job_id),
                    mapping={
                        "tenant": tenant,
                        "priority": priority,
                        "since": now,
                        "models": "|".join(workflow.models(task.workflow)),
                        "nodes": len(task.workflow),
                        "timeout": timeout,
                        "print": print_,
                    },
                )
                for key in set(task.inputs.values()):
                    pipe.sadd(names.wanting(key), job_id)
                    pipe.expire(names.wanting(key), _WANTED)
                enqueue(job, pipe)
                remember(pipe, job_id, tenant, now)
                pipe.hincrby(names.COUNTERS, "submitted", 1)
                wake(pipe, name)
                tell(pipe, job_id, "pending")
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return self.status(job_id)

    def _repeated(self, job_id: str, tenant: str, print_: str) -> JobView:
        before = self.connection.hmget(names.job(job_id), "tenant", "print")
        if text(before[0]) != tenant:
            raise ConflictError(f"the job id {job_id} is taken", hint="let the queue choose one")
        if text(before[1]) != print_:
            raise ConflictError(
                f"the job {job_id} was submitted before, with another workflow or other settings",
                hint="a new job needs a new id",
            )
        return self.status(job_id)

    def _check_depth(self, tenant: str) -> None:
        with self.connection.pipeline(transaction=False) as pipe:
            for priority in names.PRIORITIES:
                pipe.llen(f"rq:queue:{names.queue(tenant, priority)}")
            waiting = sum(pipe.execute())
        if waiting >= self.settings.depth:
            raise LimitError(
                f"{tenant} has {waiting} jobs waiting, and {self.settings.depth} is the limit",
                hint="wait for some to end, or cancel some: comfyrun jobs",
                after=10,
            )

    def _check_rate(self, tenant: str) -> None:
        if not self.settings.rate:
            return
        seconds, _ = self.connection.time()
        key = f"comfy:rate:{tenant}:{int(seconds // _MINUTE)}"
        with self.connection.pipeline() as pipe:
            pipe.incr(key)
            pipe.expire(key, int(2 * _MINUTE))
            count = pipe.execute()[0]
        if count > self.settings.rate:
            left = _MINUTE - seconds % _MINUTE
            raise LimitError(
                f"{tenant} may submit {self.settings.rate:g} jobs a minute",
                hint=f"again in {left:.0f} s",
                after=max(1.0, left),
            )

    # --- looking ---------------------------------------------------------------------------------

    def status(self, job_id: str, tenant: str | None = None) -> JobView:
        """UnknownJobError when there is no such job, or it is not that tenant's."""
        try:
            found = self._views([names.check_job(job_id)])
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        if not found or (tenant is not None and found[0].tenant != tenant):
            raise UnknownJobError(f"there is no job {job_id}", hint="comfyrun jobs lists them")
        return found[0]

    def views(self, job_ids: Iterable[str], tenant: str | None = None) -> list[JobView]:
        """Those that there are, and that are the tenant's."""
        try:
            return [view for view in self._views(job_ids) if tenant in (None, view.tenant)]
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None

    def jobs(
        self,
        tenant: str | None = None,
        states: Iterable[State] | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> list[JobView]:
        """The latest first; with `before` those that were submitted before that second: the next page."""
        wanted = set(states) if states is not None else None
        found: list[JobView] = []
        try:
            while len(found) < limit:
                pairs = self._ids([tenant] if tenant else self.tenants(), limit, before)
                if not pairs:
                    break
                views = self._views(job_id for job_id, _ in pairs)
                found += [job for job in views if wanted is None or job.state in wanted]
                before = pairs[-1][1]
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        return found[:limit]

    def tenants(self) -> list[str]:
        return sorted(text(name) for name in self.connection.smembers(names.TENANTS))

    def _ids(self, tenants: Iterable[str], limit: int, before: float | None) -> list[tuple[str, float]]:
        latest = "+inf" if before is None else f"({before!r}"
        with self.connection.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zrevrangebyscore(
                    names.jobs_of(tenant), latest, "-inf", start=0, num=limit, withscores=True
                )
            found = [(text(job_id), float(since)) for pairs in pipe.execute() for job_id, since in pairs]
        return sorted(found, key=lambda pair: -pair[1])[:limit]

    def workers(self) -> list[WorkerView]:
        try:
            keys = sorted(self.connection.scan_iter(names.WORKERS, count=500))
            with self.connection.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                found = pipe.execute()
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        return [
            worker_view(text(key).partition(":")[2], raw) for key, raw in zip(keys, found, strict=True) if raw
        ]

    def queues(self) -> list[QueueView]:
        """Those that have jobs waiting."""
        try:
            return self._queues()
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None

    def _queues(self) -> list[QueueView]:
        waiting = sorted(text(name) for name in self.connection.smembers(names.WAITING))
        found = []
        now = float(self.connection.time()[0])
        for name in waiting:
            known = names.of_queue(name)
            length = int(self.connection.llen(f"rq:queue:{name}"))
            if known is None or not length:
                continue
            first = self.connection.lindex(f"rq:queue:{name}", 0)
            since = self.connection.hget(names.job(text(first)), "since") if first else None
            oldest = max(0.0, now - float(since)) if since else None
            found.append(QueueView(tenant=known[0], priority=known[1], waiting=length, oldest=oldest))
        return found

    def _views(self, ids: Iterable[str]) -> list[JobView]:
        wanted = list(ids)
        fields = ("status", "meta", "worker_name")
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in wanted:
                pipe.hgetall(names.job(job_id))
                pipe.hmget(Job.key_for(job_id), *fields)
            raw = pipe.execute()
        views = [
            job_view(job_id, ours, dict(zip(fields, theirs, strict=True)))
            for job_id, ours, theirs in zip(wanted, raw[::2], raw[1::2], strict=True)
            if ours and theirs[0]
        ]
        waiting = [view for view in views if view.state == "pending"]
        if not waiting:
            return views
        with self.connection.pipeline(transaction=False) as pipe:
            for view in waiting:
                pipe.lpos(f"rq:queue:{names.queue(view.tenant, view.priority)}", view.id)
            places = dict(zip((view.id for view in waiting), pipe.execute(), strict=True))
        return [replace(view, position=places.get(view.id)) for view in views]

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[JobView], None] | None = None,
        tenant: str | None = None,
    ) -> JobView:
        """The job when it has ended. LimitError when `timeout` seconds are over before.

        A Redis that is away is waited for, five minutes at most. When it came back without its data, a job that runs
        is written again by its worker as it ends; one that waited is lost, and UnknownJobError says so.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self.connection.pubsub(ignore_subscribe_messages=True) as channel:
            listening, away = False, None
            while True:
                try:
                    if not listening:
                        channel.subscribe(names.EVENTS)
                        listening = True
                    view = self.status(job_id, tenant)
                    if progress:
                        progress(view)
                    if view.state in ENDED:
                        return view
                    self._heard(channel, job_id, _LOOK)
                    away = None
                except (redis.RedisError, QueueError) as error:
                    listening = False
                    away = time.monotonic() if away is None else away
                    if time.monotonic() - away > _AWAY:
                        meant = error if isinstance(error, QueueError) else said(error, self.settings.redis)
                        raise meant from None
                    time.sleep(_LOOK)
                if end is not None and time.monotonic() >= end:
                    raise LimitError(
                        f"{job_id} has not ended after {timeout:g} s", hint=f"comfyrun status {job_id}"
                    )

    @staticmethod
    def _heard(channel: redis.client.PubSub, job_id: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            message = channel.get_message(timeout=left)
            if message and message["type"] == "message" and job_id.encode() in message["data"]:
                return

    # --- changing --------------------------------------------------------------------------------

    def cancel(self, job_id: str, tenant: str | None = None) -> JobView:
        """A waiting job ends at once; one that runs as soon as its worker hears of it. An ended one stays as it is."""
        view = self.status(job_id, tenant)
        if view.state in ENDED:
            return view
        try:
            self._cancel(job_id)
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        return self.status(job_id)

    def _cancel(self, job_id: str) -> None:
        while True:
            with self.connection.pipeline() as pipe:
                pipe.watch(names.lease(job_id), names.job(job_id), Job.key_for(job_id))
                job = fetch(job_id, self.connection)
                worker = pipe.hget(names.lease(job_id), "worker")
                ours = texts(pipe.hgetall(names.job(job_id)))
                if job is None or STATES.get(job.get_status(refresh=False).value, "pending") in ENDED:
                    return
                seconds, micro = pipe.time()
                pipe.multi()
                pipe.hset(names.job(job_id), "cancel", 1)
                if worker:
                    pipe.publish(names.orders(text(worker)), json.dumps({"cancel": job_id}))
                else:
                    pipe.lrem(f"rq:queue:{job.origin}", 0, job_id)
                    self._ledger.end_cancelled(
                        pipe, Held(job=job, ours=ours, lease={}, now=seconds + micro / 1e6)
                    )
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return

    def reprioritise(self, job_id: str, priority: Priority, tenant: str | None = None) -> JobView:
        """Move a waiting job to another priority, behind what waits there. ConflictError when it does not wait."""
        if priority not in names.PRIORITIES:
            raise ConfigError(f"no priority {priority!r}: {', '.join(names.PRIORITIES)}")
        try:
            self._reprioritise(job_id, priority, tenant)
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        return self.status(job_id)

    def _reprioritise(self, job_id: str, priority: Priority, tenant: str | None) -> None:
        tries = 0
        while True:
            view = self.status(job_id, tenant)
            if view.state != "pending":
                raise ConflictError(f"{job_id} is {view.state}; only a pending job has a priority")
            if view.priority == priority:
                return
            old, new = names.queue(view.tenant, view.priority), names.queue(view.tenant, priority)
            with self.connection.pipeline() as pipe:
                pipe.watch(names.lease(job_id), Job.key_for(job_id), f"rq:queue:{old}")
                if pipe.exists(names.lease(job_id)):
                    continue
                if pipe.lpos(f"rq:queue:{old}", job_id) is None:
                    # Taken a moment ago, and then it is not pending any more; or removed from its queue by hand.
                    tries += 1
                    if tries >= _TRIES:
                        raise ConflictError(f"{job_id} is in no queue", hint=f"comfyrun cancel {job_id}")
                    continue
                pipe.multi()
                pipe.lrem(f"rq:queue:{old}", 0, job_id)
                pipe.rpush(f"rq:queue:{new}", job_id)
                pipe.hset(Job.key_for(job_id), "origin", new)
                pipe.hset(names.job(job_id), "priority", priority)
                wake(pipe, new)
                tell(pipe, job_id, "pending")
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return

    def retry(self, job_id: str, tenant: str | None = None) -> JobView:
        """Run a failed or cancelled job once more, under a new id. Its inputs must still be there."""
        view = self.status(job_id, tenant)
        if view.state not in ("failed", "cancelled"):
            raise ConflictError(f"{job_id} is {view.state}; only what failed or was cancelled is run again")
        job = fetch(job_id, self.connection)
        if job is None:
            raise UnknownJobError(f"there is no job {job_id}")
        task = job.task
        return self.submit(
            Submission(
                workflow=task.workflow,
                tenant=view.tenant,
                priority=view.priority,
                inputs=task.inputs,
                extra=task.extra,
            )
        )

    def trail(self, job_id: str, after: str = trail.START) -> tuple[list[dict[str, Any]], str]:
        """What the job's ComfyUI said after that entry, a page of it, and the last entry's id (see trail.py)."""
        try:
            return trail.read(self.connection, names.check_job(job_id), after)
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None

    def models(self) -> tuple[dict[str, dict[str, int]], int]:
        """Folder → file → how many workers have it; and how many workers have said so."""
        try:
            return modellists.read(self.connection), len(modellists.workers(self.connection))
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None

    def ping(self) -> float:
        """Seconds that Redis takes to answer."""
        begin = time.monotonic()
        try:
            self.connection.ping()
        except redis.RedisError as error:
            raise said(error, self.settings.redis) from None
        return time.monotonic() - begin


def _fingerprint(task: Task, tenant: str, priority: str, timeout: float) -> str:
    digest = hashlib.sha256(workflow.encoded(task.workflow))
    digest.update(json.dumps([dict(task.inputs), tenant, priority, timeout], sort_keys=True).encode())
    return digest.hexdigest()


__all__ = ["Broker", "ComfyworkError", "Submission"]
