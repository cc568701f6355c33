"""Redis away, empty, full, read-only, with another password: at each stage of a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from queuekit import Comfy, Server, Worker, consistent, ended, settings_of, submission, until

from comfywork.broker import Broker
from comfywork.errors import LimitError, QueueError, RefusedError, UnknownJobError
from comfywork.link import connect, diagnose
from comfywork.settings import Redis

Make = Callable[..., Worker]
_STEPS = [
    "comfywork.lease:Ledger.take|after|1",
    "comfywork.comfy:Comfy.submit|after|1",
    "comfywork.lease:Ledger.seal|before|1",
    "comfywork.lease:Ledger.seal|after|1",
    "comfywork.lease:Ledger.finish|before|1",
    "comfywork.lease:Ledger.finish|after|1",
]


@pytest.mark.parametrize("data", ["with its data", "without"])
@pytest.mark.parametrize("step", _STEPS)
def test_redis_is_killed_and_started_again(
    own_server: Server, comfy: Comfy, workers: Make, tmp_path: Path, step: str, data: str
) -> None:
    """The worker is held at that step meanwhile; it never learns how."""
    broker = Broker(connect(settings_of(own_server).redis), settings_of(own_server))
    job = broker.submit(submission(text="kept", seconds=0.2))
    worker = workers(own_server, comfy)
    worker.start(STEP=f"{step}|STOP", STEP_FILE=str(tmp_path / "reached"))
    until((tmp_path / "reached").exists, what=step)
    own_server.kill()
    if data == "without":
        own_server.forget()
    own_server.start()
    worker.signal(signal.SIGCONT)
    if data == "without" and step in (_STEPS[0], _STEPS[-1]):
        # Nobody has the job any more: it was not read yet, or was done with. Submitted again, it is done again.
        until(lambda: "take" not in step or "was removed" in worker.said(), what="the worker goes on")
        with pytest.raises(UnknownJobError):
            broker.status(job.id)
        broker.submit(submission(text="kept", id=job.id))
    view = until(lambda: _completed(broker, job.id), seconds=30, what="it is completed")
    assert len(view.outputs) == 1
    assert len(comfy.executed()) <= 2
    if data != "without":
        assert len(comfy.executed()) == 1
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    consistent(own_server.client)


def _completed(broker: Broker, job: str) -> object:
    try:
        view = broker.status(job)
    except (UnknownJobError, QueueError):
        return None
    return view if view.state == "completed" else None


def test_redis_is_away_at_the_start_and_while_somebody_waits(
    own_server: Server, comfy: Comfy, workers: Make
) -> None:
    own_server.kill()
    worker = workers(own_server, comfy).start()
    until(lambda: "cannot be reached" in worker.said(), what="it says so, and goes on trying")
    own_server.start()
    broker = Broker(connect(settings_of(own_server).redis, retries=0), settings_of(own_server))
    job = broker.submit(submission(seconds=3))
    until(comfy.executed, what="it runs")
    own_server.kill()
    with pytest.raises(QueueError, match="cannot be reached"):
        broker.submit(submission())
    import threading

    threading.Timer(1.5, own_server.start).start()
    assert ended(broker, job).state == "completed"
    assert len(comfy.executed()) == 1


def test_sigterm_while_redis_is_away(own_server: Server, comfy: Comfy, workers: Make) -> None:
    worker = workers(own_server, comfy).taking()
    own_server.kill()
    until(lambda: "cannot be reached" in worker.said(), what="it has noticed")
    worker.signal(signal.SIGTERM)
    assert worker.ended(30) == 0, worker.said()


def test_redis_is_full(own_server: Server, comfy: Comfy, workers: Make) -> None:
    """Nothing is lost, and nothing is taken that could not be given back."""
    client = own_server.client
    broker = Broker(client, settings_of(own_server))
    first = broker.submit(submission(text="one", seconds=1.0))
    second = broker.submit(submission(text="two"))
    worker = workers(own_server, comfy).taking()
    until(comfy.executed, what="it runs")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    with pytest.raises(QueueError, match="is full"):
        broker.submit(submission())
    until(lambda: "is full" in worker.said(), what="the worker says so")
    time.sleep(2)
    assert client.lrange("rq:queue:comfy.t1.normal", 0, -1) == [second.id.encode()]
    client.config_set("maxmemory", 0)
    assert ended(broker, first).state == "completed"
    assert ended(broker, second).state == "completed"
    assert len(comfy.executed()) == 2
    consistent(client)


def test_the_password_is_wrong(own_server: Server, comfy: Comfy, workers: Make) -> None:
    own_server.client.config_set("requirepass", "right")
    own_server.password = "right"
    worker = workers(own_server, comfy, REDIS_PASSWORD="wrong").start()
    assert worker.ended() == 77
    assert "refuses the password" in worker.said()
    assert "wrong\n" not in worker.said()
    right = workers(own_server, comfy).taking()
    assert right.process is not None
    for password in (None, "wrong"):
        where = Redis(port=own_server.port, password=password)
        with pytest.raises(RefusedError, match="refuses the password"):
            Broker(connect(where), settings_of(own_server, redis=where)).submit(submission())
        steps = {step.name: step for step in diagnose(where)}
        assert steps["TCP"].status == "ok"
        assert steps["password"].status == "failed"
        assert steps["version"].status == "skipped"


def test_a_user_with_too_few_rights(own_server: Server) -> None:
    own_server.client.execute_command(
        "ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@read", "+@connection", "+info"
    )
    where = Redis(port=own_server.port, user="reader", password="pw")
    with pytest.raises(RefusedError, match="user reader may not do that"):
        Broker(connect(where), settings_of(own_server, redis=where)).submit(submission())
    steps = {step.name: step for step in diagnose(where)}
    assert steps["password"].status == "ok"
    assert steps["rights"].status == "failed"
    # All commands, but not RQ's keys: what the queue is made of.
    own_server.client.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~comfy:*", "&*", "+@all")
    half = Redis(port=own_server.port, user="half", password="pw")
    assert {step.name: step.status for step in diagnose(half)}["rights"] == "failed"


def test_a_replica_is_told_from_the_primary(own_server: Server, tmp_path: Path) -> None:
    replica = Server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(own_server.port)).start()
    try:
        where = Redis(port=replica.port)
        with pytest.raises(QueueError, match="is a replica"):
            Broker(connect(where), settings_of(replica, redis=where)).submit(submission())
    finally:
        replica.kill()


def test_diagnose_names_what_is_wrong(own_server: Server, tmp_path: Path) -> None:
    good = diagnose(Redis(port=own_server.port))
    assert [step.status for step in good] == ["ok"] * len(good)
    assert good[-1].message == "append-only file"

    def first_failure(where: Redis) -> tuple[str, str]:
        found = next(step for step in diagnose(where) if step.status == "failed")
        return found.name, found.message

    assert first_failure(Redis(host="no-such-host.invalid"))[0] == "name resolution"
    from queuekit import free_port

    assert first_failure(Redis(port=free_port()))[0] == "TCP"
    assert first_failure(Redis(port=own_server.port, tls=True))[0] == "TLS"


def test_waiting_ends_in_time(own_server: Server) -> None:
    broker = Broker(connect(settings_of(own_server).redis, retries=0), settings_of(own_server))
    job = broker.submit(submission())
    with pytest.raises(LimitError):
        broker.wait(job.id, timeout=0.5)
    own_server.kill()
    begin = time.monotonic()
    with pytest.raises(LimitError):
        broker.wait(job.id, timeout=2.0)
    assert time.monotonic() - begin < 6


def test_older_data_give_no_token_twice(server: Server, connection: redis.Redis) -> None:
    from comfywork.lease import Lease, Ledger

    settings = settings_of(server)
    broker, ledger = Broker(connection, settings), Ledger(connection, settings)
    ledger.own("w", "w")
    broker.submit(submission())
    lease = ledger.take("w", "w")
    assert isinstance(lease, Lease)
    ledger.hand_back(lease.job, lease.token, "test")
    connection.set("comfy:fence", 1)  # as in a copy of yesterday
    again = ledger.take("w", "w")
    assert isinstance(again, Lease)
    assert again.token > lease.token
