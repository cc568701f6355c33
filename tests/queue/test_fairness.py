"""Whose job is next: bounds on how long anybody waits, with a clock that only Redis has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from queuekit import Server, fake, settings_of

from comfywork import names
from comfywork.broker import Broker, Submission
from comfywork.lease import PATIENCE, Lease, Ledger


class Line:
    """One worker, and GPU seconds that pass by moving the lease's beginning back."""

    def __init__(self, server: Server, **more: Any) -> None:
        self.settings = settings_of(server, depth=10_000, heartbeat_timeout=600.0, **more)
        self.client = server.client
        self.broker, self.ledger = Broker(self.client, self.settings), Ledger(self.client, self.settings)
        self.ledger.own("w", "w")

    def submit(self, tenant: str, priority: Any = "normal") -> str:
        return self.broker.submit(Submission(tenant=tenant, priority=priority, workflow=fake())).id

    def serve(self, seconds: Callable[[str], float] | float = 1.0) -> str:
        """The tenant of the job that was run."""
        lease = self.ledger.take("w", "w")
        assert isinstance(lease, Lease), lease
        tenant = names.of_queue(lease.queue)
        assert tenant
        took = seconds if isinstance(seconds, float) else seconds(tenant[0])
        begun = float(self.client.hget(names.lease(lease.job), "begun") or 0)
        self.client.hset(names.lease(lease.job), "begun", begun - took)
        self.ledger.finish(lease, ledger_sealed(self.ledger, lease))
        return tenant[0]


def ledger_sealed(ledger: Ledger, lease: Lease) -> Any:
    return ledger.seal(lease, (), lease.token)


def test_one_tenant_floods_and_nineteen_do_not_wait(server: Server) -> None:
    line = Line(server)
    for _ in range(200):
        line.submit("flood")
    for _ in range(10):
        line.serve()
    for number in range(19):
        line.submit(f"t{number}")
    order = [line.serve() for _ in range(40)]
    assert {f"t{number}" for number in range(19)} <= set(order[:21]), order


def test_seconds_count_and_not_jobs(server: Server) -> None:
    """Jobs of one tenant take ten times as long: it gets a tenth of the jobs, and half of the time."""
    line = Line(server)
    for _ in range(150):
        line.submit("long")
        line.submit("short")
    order = [line.serve(lambda tenant: 10.0 if tenant == "long" else 1.0) for _ in range(110)]
    assert 0.35 < 10 * order.count("long") / (10 * order.count("long") + order.count("short")) < 0.65


def test_who_had_nothing_to_do_gains_nothing(server: Server) -> None:
    line = Line(server)
    for _ in range(60):
        line.submit("a")
    for _ in range(30):
        line.serve()
    for _ in range(30):
        line.submit("b")
    order = [line.serve() for _ in range(20)]
    assert 8 <= order.count("b") <= 12, order


def test_priorities_and_ageing(server: Server) -> None:
    line = Line(server, ageing=1000.0)
    low, normal, high = line.submit("a", "low"), line.submit("b"), line.submit("c", "high")
    assert [line.serve() for _ in range(3)] == ["c", "b", "a"]
    assert low
    assert normal
    assert high
    # A low one that nobody has served for two ageings is as good as a high one, and older.
    old = line.submit("a", "low")
    line.client.hincrbyfloat(names.job(old), "since", -2100)
    line.client.hset(names.LAST, "comfy.a.low", 0)
    line.submit("c", "high")
    line.client.zadd(names.SERVED, {"a": 0, "c": 5})
    assert line.serve() == "a"


def test_a_flood_does_not_age(server: Server) -> None:
    """Its jobs have waited long, but it is served all the time: a fresh job of another goes first."""
    line = Line(server, ageing=100.0)
    for _ in range(20):
        line.client.hincrbyfloat(names.job(line.submit("flood")), "since", -500)
    for _ in range(5):
        line.serve()
    line.submit("fresh")
    assert line.serve() == "fresh"


def test_a_tenant_may_be_called_now(server: Server) -> None:
    """No name of a tenant means anything."""
    line = Line(server)
    for tenant in ("now", "clock", "a"):
        for _ in range(5):
            line.submit(tenant)
    order = [line.serve() for _ in range(15)]
    assert {order[:6].count(tenant) for tenant in ("now", "clock", "a")} == {2}, order


def test_a_job_is_left_to_the_idle_worker_that_has_its_models(
    server: Server, connection: redis.Redis
) -> None:
    import time

    line = Line(server)
    other = Ledger(connection, line.settings)
    other.own("x", "x")
    for name, ledger in (("w", line.ledger), ("x", other)):
        ledger.beat(name, name, None, None, {"state": "idle", "loaded": ""})
    loader = {"1": {"class_type": "Fake", "inputs": {"ckpt": "sdxl.safetensors"}}}

    def submit() -> str:
        return line.broker.submit(Submission(tenant="t", workflow=loader)).id

    submit()
    first = other.take("x", "x")
    assert isinstance(first, Lease)
    other.finish(first, ledger_sealed(other, first))
    assert other.take("x", "x") == "none"  # idle, with the model
    job = submit()
    assert line.ledger.take("w", "w") == "passed"
    taken = other.take("x", "x")
    assert isinstance(taken, Lease)
    assert taken.job == job
    # It is busy now: nobody waits for it.
    second = submit()
    mine = line.ledger.take("w", "w")
    assert isinstance(mine, Lease)
    assert mine.job == second
    line.ledger.finish(mine, ledger_sealed(line.ledger, mine))
    other.finish(taken, ledger_sealed(other, taken))
    # Idle, and silent: never more than PATIENCE late.
    connection.hset("worker:w", "loaded", "")
    assert other.take("x", "x") == "none"
    third = submit()
    begin = time.monotonic()
    while not isinstance(found := line.ledger.take("w", "w"), Lease):
        assert found == "passed"
        time.sleep(0.02)
    assert found.job == third
    assert PATIENCE * 0.8 < time.monotonic() - begin < PATIENCE + 0.5


@pytest.mark.parametrize("clock", [-86400.0, 86400.0])
def test_no_clock_of_a_client_decides(server: Server, monkeypatch: pytest.MonkeyPatch, clock: float) -> None:
    """A worker whose clock is a day off takes, keeps and ends a job; nobody reaps it."""
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + clock)
    line = Line(server)
    job = line.submit("t")
    lease = line.ledger.take("w", "w")
    assert isinstance(lease, Lease)
    assert line.ledger.beat("w", "w", lease, None, {}).held
    assert line.ledger.reap() == []
    line.ledger.finish(lease, ledger_sealed(line.ledger, lease))
    view = line.broker.status(job)
    assert view.state == "completed"
    assert abs((view.ended or 0) - real()) < 60
