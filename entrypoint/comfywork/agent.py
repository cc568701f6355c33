"""The worker: takes jobs from the queue for the ComfyUI beside it.

Three threads. The main one takes a job, runs it, commits it. The heart tells Redis every few seconds that this worker
lives, keeps the lease of its job, and hands back what silent workers hold; it beats whatever the job does. The ear
hears what the worker is told to do at once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import redis

from comfywork import names
from comfywork.comfy import Comfy
from comfywork.errors import ComfyworkError, ConfigError
from comfywork.execution import Cancelled, Execution, HandBack, JobFailed, StuckError, Wishes, sweep
from comfywork.jobs import ForeignJobError, Job, fetch
from comfywork.keeping import Keeper
from comfywork.lease import Foreign, Lease, LeaseLostError, Ledger, Sealed, UsurpedError, generation, texts
from comfywork.link import connect, said, text
from comfywork.modellists import Lister
from comfywork.record import Record
from comfywork.storage import MissingError, StorageSettings, open_storage
from comfywork.trail import Trail
from comfywork.views import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfywork.jobs import Task
    from comfywork.settings import Settings
    from comfywork.storage import Storage
    from comfywork.views import FailureKind, Progress

T = TypeVar("T")

log = logging.getLogger("comfywork")

_TICK = 0.25  # seconds: how often the heart looks whether there is something to say
_PASSED = 0.15  # seconds until a job that was left to another worker is looked at again
_BEATS = 4  # heartbeats within the time after which a worker counts as dead
_LOOKS = 4  # looks for silent workers for each heartbeat
_TIDY = 15.0  # seconds between two clean-ups of what nobody else puts in order
_UNREADY = 1.0  # seconds between two looks at a ComfyUI that does not take prompts
_PAUSE = 0.5  # seconds, doubled, between two tries when Redis does not answer
_LONGEST_PAUSE = 5.0


@dataclass(kw_only=True)
class _Work:
    """The job that runs."""

    lease: Lease
    tenant: str
    kept: Mapping[str, str]
    """What `names.job` held of it when it was taken."""
    wishes: Wishes
    since: float = field(default_factory=time.monotonic)
    task: Task | None = None
    progress: dict[str, Any] | None = None
    sealing: bool = False
    """What was staged may be the result by now."""
    fresh: bool = False
    """There is progress that Redis has not been told."""
    trail: Trail | None = None


class Agent:
    def __init__(self, settings: Settings, storage: Storage | None = None) -> None:
        self.settings = settings
        self._redis = connect(settings.redis)
        self._ledger = Ledger(self._redis, settings)
        self._record = Record(self._redis, settings)
        self._comfy = Comfy(settings.server, f"comfywork-{settings.worker_id}")
        self._storage_settings = StorageSettings.from_environment(os.environ)
        self._storage = storage or open_storage(self._storage_settings, self._redis)
        self._lister = Lister(self.settings.server, self._redis, self.settings.worker_id)
        self._nonce = ""
        self._generation = ""
        self._draining = threading.Event()
        self._over = threading.Event()
        self._gone: ComfyworkError | None = None
        self._work: _Work | None = None
        self._lock: IO[str] | None = None
        self._warm = False
        """It has run a job a moment ago: ComfyUI is not asked whether it takes prompts."""
        self._cleaner = ThreadPoolExecutor(1, "cleaner")
        self._hurry = False
        """A job that runs is handed back now."""

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM. The exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.drain())
        self._nonce = self._own_nonce()
        self._storage.check()
        self._claim()
        self._persist(self._record.born)
        self._generation = self._persist(lambda: generation(self._redis))
        held = text(self._persist(lambda: self._redis.hget(names.HELD, self.settings.worker_id)))
        sweep((_folder("COMFYWORK_INPUT"), _folder("COMFYWORK_OUTPUT")), keep=held)
        keeper = Keeper(self._redis, self._storage, self._storage_settings, self.settings.job_timeout)
        acts: tuple[Callable[[], None], ...] = (
            self._beat_on,
            self._listen,
            lambda: self._lister.run(self._over),
            lambda: keeper.run(self.settings.worker_id, self._over),
        )
        threads = [threading.Thread(target=act, daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        log.info("worker %s takes jobs from %s", self.settings.worker_id, self.settings.redis.address)
        try:
            while not self._draining.is_set():
                self._turn()
        except ComfyworkError:
            if not self._draining.is_set():
                raise
            log.exception("the queue cannot be told that this worker ends; its name expires")
        finally:
            self._cleaner.shutdown()
            self._over.set()
            threads[0].join(timeout=_UNREADY)
            with suppress(redis.RedisError):
                self._ledger.disown(self.settings.worker_id, self._nonce)
            self._record.died()
            self._comfy.close()
        if self._gone is not None:
            raise self._gone
        log.info("worker %s has ended", self.settings.worker_id)
        return 0

    def drain(self) -> None:
        """Take no more jobs; give the one that runs its time, then hand it back."""
        if self._draining.is_set():
            self._give_up()  # a second signal: at once
            return
        self._draining.set()
        self._record.facts["state"] = "draining"
        timer = threading.Timer(self.settings.drain_timeout, self._give_up)
        timer.daemon = True
        timer.start()

    def _give_up(self) -> None:
        self._hurry = True
        if self._work:
            self._work.wishes.give_up.set()

    def _own_nonce(self) -> str:
        """What proves that this is the same worker, started again: a file that only one process can hold."""
        file = self.settings.state_file.with_name(f"{self.settings.worker_id}.owner")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Path(file).open("a+", encoding="utf-8")  # noqa: SIM115 - held for life
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process on this machine is worker {self.settings.worker_id}",
                hint="give each its own WORKER_ID",
            ) from None
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): after a crash this worker waits for its own name", file, error
            )
            return uuid.uuid4().hex
        self._lock.seek(0)
        nonce = self._lock.read().strip()
        if not nonce:
            nonce = uuid.uuid4().hex
            self._lock.write(nonce)
            self._lock.flush()
        return nonce

    def _claim(self) -> None:
        """The name is this process' own, or ConfigError after as long as a dead one would keep it."""
        end = time.monotonic() + 1.5 * self.settings.heartbeat_timeout
        told = False
        while not self._persist(lambda: self._ledger.own(self.settings.worker_id, self._nonce)):
            if not told:
                log.warning(
                    "another worker goes by the name %s; waiting whether it is gone", self.settings.worker_id
                )
                told = True
            if self._draining.is_set():
                return
            if time.monotonic() > end:
                raise ConfigError(
                    f"another worker goes by the name {self.settings.worker_id}, and lives",
                    hint="give each its own WORKER_ID",
                )
            time.sleep(_UNREADY)

    # --- one job ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        if self._gone is not None:
            self._draining.set()
            return
        warm, self._warm = self._warm, False
        if not warm and not self._comfy.ready():
            self._record.facts["state"] = "starting"
            time.sleep(_UNREADY)
            return
        if self._record.facts["state"] == "starting":
            self._record.facts["state"] = "idle"
        try:
            taken = self._persist(lambda: self._ledger.take(self.settings.worker_id, self._nonce))
        except UsurpedError as error:
            if not self._persist(lambda: self._ledger.own(self.settings.worker_id, self._nonce)):
                self._gone = error
            return
        if isinstance(taken, Lease):
            self._run(taken)
        elif isinstance(taken, Foreign):
            log.error("%s in %s is no job of ours, and is not run", taken.job, taken.queue)
            self._persist(
                lambda: self._ledger.refuse(taken, "no job of this queue: it was not submitted by comfyrun")
            )
        elif taken == "passed":
            self._persist(self._ledger.ring)
            time.sleep(_PASSED)
        elif not self._draining.is_set():
            with suppress(redis.RedisError):
                self._ledger.wait(self.settings.poll_interval)

    def _run(self, lease: Lease) -> None:
        kept = texts(self._persist(lambda: self._redis.hgetall(names.job(lease.job))))
        wishes = Wishes(cancel=threading.Event(), give_up=threading.Event(), lost=threading.Event())
        work = _Work(lease=lease, tenant=kept.get("tenant", ""), kept=kept, wishes=wishes)
        if "cancel" in kept:
            wishes.cancel.set()
        self._record.facts.update(state="busy", job=lease.job)
        self._work = work
        if self._hurry:  # told so between taking the job and this line
            wishes.give_up.set()
        begin = time.monotonic()
        execution = Execution(
            comfy=self._comfy,
            storage=self._storage,
            wishes=wishes,
            progress=lambda progress: _note(work, progress),
            say=lambda message: log.warning("%s: %s", lease.job, message),
            input_folder=_folder("COMFYWORK_INPUT"),
            output_folder=_folder("COMFYWORK_OUTPUT"),
        )
        log.info("job received: %s of %s (attempt %d)", lease.job, work.tenant, lease.attempts)
        try:
            outcome = self._executed(execution, work)
            self._warm = outcome == "completed"
            log.info("job %s: %s, %.1f s", outcome, lease.job, time.monotonic() - begin)
        except LeaseLostError as error:
            log.warning("%s; what was done for it is dropped", error)
        finally:
            self._work = None
            self._record.facts.update(state="draining" if self._draining.is_set() else "idle", job="")
            if self._warm:  # nobody has this job again; the next one need not wait
                self._cleaner.submit(execution.clean, lease.job)
            else:
                execution.clean(lease.job)
            if not work.sealing and work.tenant:
                execution.discard(work.tenant, lease)

    def _executed(self, execution: Execution, work: _Work) -> str:
        """Run it and commit how it ended. LeaseLostError when that is not this worker's to say."""
        try:
            try:
                self._finished(execution, work)
            except StuckError as stuck:
                self._gone = stuck
                raise stuck.outcome from None
        except JobFailed as failed:
            failure = failed.failure
            self._commit(work, lambda lease: self._ledger.fail(lease.job, lease.token, failure))
            self._record.facts["failed"] += 1
            return f"failed ({failure.kind}: {failure.message})"
        except Cancelled:
            self._commit(work, lambda lease: self._ledger.cancelled(lease.job, lease.token))
            return "cancelled"
        except HandBack as back:
            self._gone = self._gone or back.ends
            return self._handed_back(work, back.why, counted=back.counted)
        self._record.facts["done"] += 1
        return "completed"

    def _finished(self, execution: Execution, work: _Work) -> None:
        lease = work.lease
        job = self._persist(lambda: fetch(lease.job, self._redis))
        if job is None:
            raise LeaseLostError(f"{lease.job} was removed")
        task = work.task = self._checked(job, lease)
        self._record.facts["loaded"] = work.kept.get("models", "")
        if "sealed" in work.kept:
            sealed = Sealed.of_json(work.kept["sealed"])
        else:
            if task.ours.get("trail") is True:
                work.trail = Trail(self._redis, lease.job, lease.token, self.settings.result_ttl)
                execution = replace(execution, trail=work.trail)
            try:
                outputs = execution.run(
                    lease, work.tenant, task, float(work.kept.get("timeout") or job.timeout or 3600)
                )
            finally:
                _tell(work)
            work.sealing = True
            sealed = self._commit(work, lambda now: self._ledger.seal(now, outputs, lease.token))
        self._published(execution, work, sealed)

    def _checked(self, job: Job, lease: Lease) -> Task:
        try:
            task = job.task
        except ForeignJobError as error:
            raise JobFailed(Failure(kind="foreign", message=str(error))) from None
        if lease.attempts > self.settings.attempts:
            raise JobFailed(
                Failure(
                    kind="worker",
                    message=f"it was begun {lease.attempts - 1} times, and its worker ended each time",
                )
            )
        return task

    def _published(self, execution: Execution, work: _Work, sealed: Sealed) -> None:
        try:
            execution.publish(work.tenant, work.lease.job, sealed.token, sealed.outputs)
        except MissingError as error:
            # Decided on, and then its files were lost: only this storage can have done that.
            raise JobFailed(
                Failure(kind="storage", message=f"its outputs were stored, and are gone: {error}")
            ) from None
        self._commit(work, lambda lease: self._ledger.finish(lease, sealed))

    def _handed_back(self, work: _Work, why: str, *, counted: bool) -> str:
        lease = work.lease
        if counted and lease.attempts >= self.settings.attempts:
            kind: FailureKind = "storage" if "storage" in why else "comfyui"
            failure = Failure(kind=kind, message=f"{lease.attempts} attempts; the last: {why}")
            self._commit(work, lambda now: self._ledger.fail(now.job, now.token, failure))
            return f"failed ({failure.message})"
        self._commit(work, lambda now: self._ledger.hand_back(now.job, now.token, why, counted=counted))
        return f"handed back ({why})"

    def _commit(self, work: _Work, act: Callable[[Lease], T]) -> T:
        """One change of the job's state, however long Redis takes; and once more when Redis has lost its data."""
        try:
            return self._persist(lambda: act(work.lease))
        except LeaseLostError:
            task = work.task
            if (
                task is None
                or not work.kept.get("tenant")
                or not self._persist(lambda: self._forgotten(work))
            ):
                raise
            log.warning("%s has lost %s: it is written again", self.settings.redis.address, work.lease.job)
            self._generation = self._persist(lambda: generation(self._redis))
            work.lease = self._persist(
                lambda: self._ledger.restore(work.lease, task, self.settings.worker_id, work.kept)
            )
            return self._persist(lambda: act(work.lease))

    def _forgotten(self, work: _Work) -> bool:
        """Whether Redis was started again since, and came back without this job: empty, or with older data.

        A job that somebody removed stays removed.
        """
        if self._redis.exists(Job.key_for(work.lease.job), names.lease(work.lease.job)):
            return False
        if generation(self._redis) != self._generation:
            return True
        try:
            up = float(self._redis.info("server")["uptime_in_seconds"])
        except (redis.exceptions.NoPermissionError, KeyError):
            return False
        return up <= time.monotonic() - work.since + _UNREADY

    def _persist(self, act: Callable[[], T]) -> T:
        """Until Redis answers. A wrong password ends the worker, a Redis that is away does not."""
        pause, told = _PAUSE, False
        while True:
            try:
                return act()
            except redis.RedisError as error:
                meant = said(error, self.settings.redis)
                if meant.exit_code != 69 or (self._draining.is_set() and self._work is None):  # noqa: PLR2004
                    raise meant from None
                if not told:
                    log.error("%s; trying again", meant)  # noqa: TRY400 - the message is what helps
                    told = True
                work = self._work
                if work is not None and work.wishes.give_up.is_set():
                    raise LeaseLostError(f"{meant}; its lease is left to expire") from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    # --- the other threads -----------------------------------------------------------------------

    def _beat_on(self) -> None:
        every = self.settings.heartbeat_timeout / _BEATS
        due, swept, tidied, told = 0.0, 0.0, 0.0, False
        while not self._over.is_set():
            work, now = self._work, time.monotonic()
            if now >= due or (work and (work.fresh or (work.trail and work.trail.fresh))):
                try:
                    self._beat(work)
                    if now >= due:
                        self._record.alive(self._comfy.system())
                        self._record.facts["models"] = self._lister.count
                        due = now + every
                    if now - swept >= every / _LOOKS:
                        swept = now
                        for job_id in self._ledger.reap(grace=every):
                            log.warning("%s was held by a silent worker, and is anybody's again", job_id)
                    if now >= tidied + _TIDY:
                        tidied = now
                        self._ledger.tidy()
                    told = False
                except redis.RedisError as error:
                    if not told:
                        log.error("no heartbeat: %s", said(error, self.settings.redis))  # noqa: TRY400
                        told = True
                    due = now + _PAUSE
                except Exception:
                    log.exception("no heartbeat")
                    due = now + every
                self._record.write()
            self._over.wait(_TICK)

    def _beat(self, work: _Work | None) -> None:
        meta = {"progress": work.progress} if work and work.fresh and work.progress else None
        if work:
            work.fresh = False
            _tell(work)
        lease = work.lease if work else None
        beat = self._ledger.beat(self.settings.worker_id, self._nonce, lease, meta, self._record.facts)
        if not beat.named:
            self._gone = UsurpedError(f"another process goes by the name {self.settings.worker_id}")
            self._give_up()
        if work is None or work is not self._work:
            return
        if beat.cancel:
            work.wishes.cancel.set()
        # A lease that is gone with Redis' data is written again when the job is committed.
        gone = not beat.held and beat.named and not self._forgotten(work)
        if gone and work.lease is lease:
            work.wishes.lost.set()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(names.orders(self.settings.worker_id))
                    while not self._over.is_set():
                        message = channel.get_message(timeout=1.0)
                        if message and message["type"] == "message":
                            self._obey(message["data"])
            except redis.RedisError:
                self._over.wait(_PAUSE)  # the heartbeat hears of it, too

    def _obey(self, order: bytes) -> None:
        try:
            wanted = json.loads(order).get("cancel")
        except (ValueError, AttributeError):
            return
        work = self._work
        if work and work.lease.job == wanted:
            work.wishes.cancel.set()


def _tell(work: _Work) -> None:
    """What ComfyUI said of the job. Whoever watches can do without."""
    if work.trail is not None:
        with suppress(redis.RedisError):
            work.trail.flush()


def _note(work: _Work, progress: Progress) -> None:
    work.progress = {
        "value": progress.value,
        "maximum": progress.maximum,
        "node": progress.node,
        "done": progress.done,
    }
    work.fresh = True


def _folder(name: str) -> Path | None:
    found = os.environ.get(name, "")
    return Path(found) if found else None
