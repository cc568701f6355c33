"""Any interleaving of what clients and workers do: no job is lost, ended twice or stuck."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from queuekit import Server, consistent, fake, settings_of

from comfywork import names
from comfywork.broker import Broker, Submission
from comfywork.errors import ConflictError
from comfywork.jobs import Task
from comfywork.lease import Lease, LeaseLostError, Ledger, Sealed
from comfywork.views import ENDED, Failure, Output

WORKERS = ("w1", "w2", "w3")
TENANTS = ("a", "b")
_server: Server | None = None


def running_server() -> Server:
    global _server  # noqa: PLW0603 - one for all examples
    if _server is None:
        _server = Server(Path(tempfile.mkdtemp(prefix="comfywork-redis-")), "--appendfsync", "no").start()
    return _server


def teardown_module() -> None:
    if _server:
        _server.kill()
        shutil.rmtree(_server.folder)


class Queue(RuleBasedStateMachine):
    """What each worker believes to hold is kept even when it has lost it: a paused worker tries all the same."""

    jobs = Bundle("jobs")

    @initialize()
    def empty(self) -> None:
        self.client: redis.Redis = running_server().client
        self.client.flushall()
        self.settings = settings_of(running_server(), attempts=3, ageing=1000.0)
        self.broker = Broker(self.client, self.settings)
        # One ledger is one process of a worker.
        self.ledgers = {name: Ledger(self.client, self.settings) for name in WORKERS}
        self.leases: dict[str, Lease | None] = dict.fromkeys(WORKERS)
        self.believed: list[tuple[str, Lease]] = []
        self.submitted: dict[str, Submission] = {}
        self.ended: dict[str, tuple[str, Any]] = {}
        self.begun: dict[str, int] = {}
        for name in WORKERS:
            assert self.ledgers[name].own(name, name)

    # --- clients ---------------------------------------------------------------------------------

    @rule(target=jobs, tenant=st.sampled_from(TENANTS), priority=st.sampled_from(names.PRIORITIES))
    def submit(self, tenant: str, priority: Any) -> str:
        one = Submission(tenant=tenant, priority=priority, workflow=fake())
        self.broker.submit(one)
        self.submitted[one.id] = one
        return one.id

    @rule(job=jobs)
    def submit_again(self, job: str) -> None:
        assert self.broker.submit(self.submitted[job]).id == job

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        self.broker.cancel(job)

    @rule(job=jobs, priority=st.sampled_from(names.PRIORITIES))
    def reprioritise(self, job: str, priority: Any) -> None:
        with contextlib.suppress(ConflictError):
            self.broker.reprioritise(job, priority)

    @rule(target=jobs, job=jobs)
    def retry(self, job: str) -> Any:
        try:
            view = self.broker.retry(job)
        except ConflictError:
            return multiple()
        self.submitted[view.id] = Submission(
            tenant=view.tenant, priority=view.priority, workflow=fake(), id=view.id
        )
        return view.id

    # --- workers ---------------------------------------------------------------------------------

    @rule(name=st.sampled_from(WORKERS))
    def take(self, name: str) -> None:
        if self.leases[name]:
            return
        taken = self.ledgers[name].take(name, name)
        if isinstance(taken, Lease):
            self.leases[name] = taken
            self.believed.append((name, taken))
            assert taken.job not in self.ended, "taken after its end"

    @rule(name=st.sampled_from(WORKERS))
    def lose_the_answer_of_take(self, name: str) -> None:
        if not self.leases[name]:
            self.ledgers[name].take(name, name)

    @rule(name=st.sampled_from(WORKERS))
    def kill(self, name: str) -> None:
        """And start it again: a new process that remembers nothing."""
        self.ledgers[name] = Ledger(self.client, self.settings)
        self.leases[name] = None

    @rule(name=st.sampled_from(WORKERS))
    def beat(self, name: str) -> None:
        lease = self.leases[name]
        self.ledgers[name].beat(name, name, lease, {"progress": {"value": 1}}, {"state": "busy"})

    @rule(
        which=st.integers(0, 1000),
        outcome=st.sampled_from(["seal", "finish", "fail", "cancelled", "back", "free"]),
    )
    def say(self, which: int, outcome: str) -> None:  # noqa: C901
        """Any holder, past ones too, says how its job went."""
        if not self.believed:
            return
        name, lease = self.believed[-1 - which % len(self.believed)]
        ledger = self.ledgers[name]
        held = int(self.client.hget(names.lease(lease.job), "token") or 0) == lease.token
        # Who ended it may say so again: the answer may have been lost.
        repeated = int(self.client.hget(names.job(lease.job), "ended_by") or 0)
        if outcome == "cancelled" and "cancel" not in {
            key.decode() for key in self.client.hkeys(names.job(lease.job))
        }:
            return
        sealed: Sealed | None = None
        try:
            match outcome:
                case "seal" | "finish":
                    sealed = ledger.seal(lease, [self.output(lease)], lease.token)
                    if outcome == "finish":
                        ledger.finish(lease, sealed)
                case "fail":
                    ledger.fail(lease.job, lease.token, Failure(kind="execution", message="no"))
                case "cancelled":
                    ledger.cancelled(lease.job, lease.token)
                case "back":
                    ledger.hand_back(lease.job, lease.token, "test")
                case "free":
                    ledger.hand_back(lease.job, lease.token, "test", counted=False)
        except LeaseLostError:
            assert not held, "the holder was refused"
            return
        assert held or lease.token == repeated, "somebody who holds nothing was heard"
        if outcome != "seal" and self.leases[name] == lease:
            self.leases[name] = None

    @staticmethod
    def output(lease: Lease) -> Output:
        key = f"t/{lease.job}/1_0.png"
        return Output(
            key=key, node="1", name=str(lease.token), media_type="x", size=1, sha256=str(lease.token)
        )

    @rule(job=jobs)
    def expire(self, job: str) -> None:
        """Its worker is silent for too long."""
        if self.client.exists(names.lease(job)):
            self.client.zadd(names.LEASES, {job: 1})

    @rule(name=st.sampled_from(WORKERS))
    def reap(self, name: str) -> None:
        self.ledgers[name].reap()

    @rule()
    def tidy(self) -> None:
        self.ledgers["w1"].tidy()

    @rule(name=st.sampled_from(WORKERS))
    def redis_loses_a_job(self, name: str) -> None:
        """All of it, as when Redis comes back empty; its worker writes it again."""
        lease = self.leases[name]
        if not lease or int(self.client.hget(names.lease(lease.job), "token") or 0) != lease.token:
            return
        kept = {
            key.decode(): value.decode() for key, value in self.client.hgetall(names.job(lease.job)).items()
        }
        queue = lease.queue
        self.client.delete(names.lease(lease.job), names.job(lease.job), f"rq:job:{lease.job}")
        self.client.zrem(names.LEASES, lease.job)
        self.client.zrem(f"rq:wip:{queue}", f"{lease.job}:{lease.token}")
        self.client.hdel(names.HELD, name)
        task = Task(workflow=self.submitted[lease.job].workflow)
        fresh = self.ledgers[name].restore(lease, task, name, kept)
        self.leases[name] = fresh
        self.believed.append((name, fresh))

    # --- what holds always -----------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "client"):
            return
        consistent(self.client)
        for job in self.submitted:
            view = self.broker.status(job)
            if view.state in ENDED:
                shown = (view.state, view.outputs)
                assert self.ended.setdefault(job, shown) == shown, "ended twice"
            else:
                assert job not in self.ended, f"{job} ended as {self.ended[job]}, and is {view.state}"

    def teardown(self) -> None:
        """Left alone, workers end all that there is."""
        if not hasattr(self, "client"):
            return
        name = "last"
        ledger = Ledger(self.client, self.settings)
        assert ledger.own(name, name)
        for _ in range(10 * len(self.submitted) + 10):
            for job in self.submitted:
                self.expire(job)
            ledger.reap()
            taken = ledger.take(name, name)
            if isinstance(taken, Lease):
                if self.client.hexists(names.job(taken.job), "cancel"):
                    ledger.cancelled(taken.job, taken.token)
                else:
                    ledger.finish(taken, ledger.seal(taken, [self.output(taken)], taken.token))
        consistent(self.client)
        assert {self.broker.status(job).state for job in self.submitted} <= set(ENDED), "stuck"
        counted = {key.decode(): int(float(n)) for key, n in self.client.hgetall(names.COUNTERS).items()}
        assert counted.get("submitted", 0) == len(self.submitted)
        assert sum(counted.get(state, 0) for state in ENDED) == len(self.submitted), "ended twice"
        tokens = [lease.token for _, lease in self.believed]
        assert len(tokens) == len(set(tokens))
        self.client.close()


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
