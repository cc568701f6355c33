"""Keeping the queue: what has ended is taken away, what has not is written down and put back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import redis

from comfywork import names
from comfywork.broker import Broker, Submission
from comfywork.errors import ComfyworkError, ConfigError, QueueError, RefusedError
from comfywork.jobs import ForeignJobError, Job, fetch
from comfywork.link import said, text
from comfywork.views import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from comfywork.storage import Storage
    from comfywork.views import JobView, State

VERSION = 1
_PAGE = 500
_NO_LIMIT = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    jobs: int = 0
    files: int = 0
    size: int = 0
    """Bytes of the files."""


def clean(
    broker: Broker,
    *,
    older: float,
    states: Iterable[State] = ENDED,
    tenant: str | None = None,
    storage: Storage | None = None,
    dry_run: bool = False,
) -> Cleaned:
    """Forget jobs that ended more than `older` seconds ago; with `storage` their files go, too."""
    wanted = [state for state in states if state in ENDED]
    done = Cleaned()
    try:
        seconds, micro = broker.connection.time()
        now = seconds + micro / 1e6
        for view in _all(broker, tenant, wanted):
            if view.ended is None or now - view.ended < older:
                continue
            if not dry_run:
                if storage is not None:
                    for output in view.outputs:
                        storage.delete(output.key)
                _forget(broker, view)
            size = sum(output.size for output in view.outputs) if storage is not None else 0
            files = len(view.outputs) if storage is not None else 0
            done = Cleaned(jobs=done.jobs + 1, files=done.files + files, size=done.size + size)
        if not dry_run:
            _tidy(broker)
    except redis.RedisError as error:
        raise said(error, broker.settings.redis) from None
    return done


def _forget(broker: Broker, view: JobView) -> None:
    job = fetch(view.id, broker.connection)
    with broker.connection.pipeline() as pipe:
        pipe.watch(names.lease(view.id), Job.key_for(view.id))
        if pipe.exists(names.lease(view.id)):
            return  # a worker has it after all
        pipe.multi()
        if job is not None:
            job.delete(pipeline=pipe)
        pipe.delete(names.job(view.id))
        pipe.zrem(names.jobs_of(view.tenant), view.id)
        try:
            pipe.execute()
        except redis.WatchError:
            return


def _tidy(broker: Broker) -> None:
    """Take ids out of the tenants' lists whose jobs Redis has forgotten by itself."""
    connection = broker.connection
    for tenant in broker.tenants():
        ids = [text(job_id) for job_id in connection.zrange(names.jobs_of(tenant), 0, -1)]
        for begin in range(0, len(ids), _PAGE):
            some = ids[begin : begin + _PAGE]
            with connection.pipeline(transaction=False) as pipe:
                for job_id in some:
                    pipe.exists(names.job(job_id))
                gone = [job_id for job_id, there in zip(some, pipe.execute(), strict=True) if not there]
            if gone:
                connection.zrem(names.jobs_of(tenant), *gone)


def backup(broker: Broker, *, outputs: bool = False) -> Iterator[dict[str, Any]]:
    """A head, each job that has not ended, the oldest first; with `outputs` what completed jobs made."""
    try:
        seconds, _ = broker.connection.time()
        yield {"kind": "comfywork-backup", "version": VERSION, "made": seconds}
        for view in reversed(list(_all(broker, None, ("pending", "processing")))):
            job = fetch(view.id, broker.connection)
            try:
                task = job.task if job is not None else None
            except ForeignJobError:
                task = None
            if task is None:
                continue  # it ended a moment ago, and Redis has forgotten it
            timeout = broker.connection.hget(names.job(view.id), "timeout")
            yield {
                "kind": "job",
                "id": view.id,
                "tenant": view.tenant,
                "priority": view.priority,
                "state": view.state,
                "submitted": view.submitted,
                "timeout": float(timeout) if timeout else None,
                **task.as_dict(),
            }
        if outputs:
            for view in _all(broker, None, ("completed",)):
                for output in view.outputs:
                    yield {"kind": "output", "job": view.id, "tenant": view.tenant, **asdict(output)}
    except redis.RedisError as error:
        raise said(error, broker.settings.redis) from None


@dataclass(frozen=True, kw_only=True)
class Restored:
    submitted: int = 0
    present: int = 0
    """There already: nothing was done."""
    refused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Outputs of the backup that the storage does not have."""


def restore(
    broker: Broker,
    lines: Iterable[str],
    *,
    storage: Storage | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Restored:
    """Submit the jobs of a backup under their own ids: however often, each is there once.

    Limits of depth and rate do not count, as they did when the jobs were first submitted. With `storage`, outputs of
    the backup are looked for there.
    """
    entries = list(_entries(lines))  # a file that is broken further down changes nothing
    free = Broker(broker.connection, replace(broker.settings, depth=_NO_LIMIT, rate=0.0))
    done = Restored()
    for number, entry in enumerate(entries, 1):
        if entry["kind"] == "output":
            done = _looked_for(storage, entry, done)
        elif free.views([str(entry["id"])], str(entry["tenant"])):
            done = replace(done, present=done.present + 1)
        else:
            done = _submitted(free, entry, done)
        progress(number)
    return done


def _submitted(broker: Broker, entry: dict[str, Any], done: Restored) -> Restored:
    try:
        broker.submit(
            Submission(
                workflow=entry["workflow"],
                tenant=entry["tenant"],
                priority=entry["priority"],
                id=entry["id"],
                inputs=entry["inputs"],
                timeout=entry["timeout"],
                extra=entry["extra"],
            )
        )
    except (QueueError, RefusedError):
        raise
    except ComfyworkError as error:
        return replace(done, refused=(*done.refused, f"{entry['id']}: {error}"))
    return replace(done, submitted=done.submitted + 1)


def _looked_for(storage: Storage | None, entry: dict[str, Any], done: Restored) -> Restored:
    from comfywork.storage import MissingError  # noqa: PLC0415

    if storage is None:
        return done
    try:
        storage.open(entry["key"]).close()
    except (MissingError, ConfigError):
        return replace(done, missing=(*done.missing, str(entry["key"])))
    return done


_WANTED = {
    "job": ("id", "tenant", "priority", "timeout", "workflow", "inputs", "extra"),
    "output": ("job", "tenant", "key"),
}


def _entries(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    head = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise ConfigError(
                f"line {number} is no JSON: the backup is cut off or damaged", hint=_DAMAGED
            ) from None
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if head is None:
            if kind != "comfywork-backup":
                raise ConfigError("this is no backup of a queue", hint="comfyrun queue backup writes one")
            if entry.get("version") != VERSION:
                raise ConfigError(f"a backup of version {entry.get('version')}, and {VERSION} is known here")
            head = entry
            continue
        if kind not in _WANTED or not set(_WANTED[kind]) <= set(entry):
            raise ConfigError(f"line {number} is no entry of a backup", hint=_DAMAGED)
        yield entry
    if head is None:
        raise ConfigError("this backup is empty", hint="comfyrun queue backup writes one")


_DAMAGED = "nothing was restored; without that line the rest can be"


def _all(broker: Broker, tenant: str | None, states: Iterable[State]) -> Iterator[JobView]:
    """The latest first, a page at a time."""
    wanted = set(states)
    before: float | None = None
    while page := broker.jobs(tenant, None, _PAGE, before):
        yield from (view for view in page if view.state in wanted)
        before = page[-1].submitted
