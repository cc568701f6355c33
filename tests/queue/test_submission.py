"""What may be submitted, and what is said to what may not. Settings, too."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from queuekit import Server, consistent, fake, settings_of, submission

from comfywork import workflow
from comfywork.broker import Broker, Submission
from comfywork.errors import ConfigError, ConflictError, LimitError, UnknownJobError
from comfywork.settings import Settings


def test_the_same_submission_is_the_same_job(broker: Broker, connection: redis.Redis) -> None:
    one = submission()
    first = broker.submit(one)
    assert broker.submit(one).id == first.id
    assert connection.llen("rq:queue:comfy.t1.normal") == 1
    for other in (
        submission(id=one.id, text="another"),
        submission(id=one.id, priority="high"),
        submission(id=one.id, timeout=9.0),
    ):
        with pytest.raises(ConflictError, match="was submitted before"):
            broker.submit(other)
    with pytest.raises(ConflictError, match="is taken"):
        broker.submit(submission(tenant="t2", id=one.id))
    with pytest.raises(UnknownJobError):
        broker.status(one.id, tenant="t2")
    consistent(connection)


NODE = {"class_type": "A", "inputs": {}}


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({"nodes": [], "links": [], "version": 0.4}, "format of ComfyUI's editor"),
        ([], "a list"),
        ({}, "no nodes"),
        ({"1": "x"}, "node 1 is a text"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_typ": "A", "inputs": {}}}, "did you mean 'class_typ'"),
        ({"1": {"class_type": "A"}}, "node 1 (A) has no inputs"),
        ({"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}, "x comes from node 9, which there is not"),
        ({"1": {"class_type": "A", "inputs": {"x": float("nan")}}}, "no number"),
        ({"1": {"class_type": "A", "inputs": {"x": {1, 2}}}}, "is not JSON"),
        ({"1": {"class_type": "A", "inputs": {"x": "y" * 10_000_000}}}, "10 MB, and 8 MB is the limit"),
    ],
)
def test_what_is_no_workflow(broker: Broker, connection: redis.Redis, graph: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        broker.submit(Submission(tenant="t1", workflow=graph))
    assert says in f"{caught.value} {caught.value.hint}"
    assert not connection.keys("comfy:job:*")


def test_wrappers_are_taken_off() -> None:
    assert workflow.checked({"prompt": {"1": NODE}, "extra_data": {}}, 1000) == {"1": NODE}
    assert workflow.checked({"prompt": NODE}, 1000) == {"prompt": NODE}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"tenant": "A"}, "is no tenant"),
        ({"tenant": "a.b"}, "is no tenant"),
        ({"id": "7"}, "is no job id"),
        ({"id": str(uuid.UUID(int=0xABC)).upper()}, "canonical spelling"),
        ({"priority": "urgent"}, "no priority"),
        ({"timeout": 1e9}, "a timeout is from"),
        ({"inputs": {"hello": "t2/inputs/x"}}, "is no input of t1"),
        ({"inputs": {"nobody": "t1/inputs/x"}}, "names no file 'nobody'"),
        ({"extra": {"x": "y" * 20_000_000}}, "16 MB is the limit"),
        ({"extra": {"x": {1}}}, "is not JSON"),
    ],
)
def test_what_goes_with_it(broker: Broker, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        broker.submit(submission(**more))
    assert says in str(caught.value)


def test_a_tenant_s_limits(server: Server, connection: redis.Redis) -> None:
    deep = Broker(connection, settings_of(server, depth=3))
    jobs = [deep.submit(submission()) for _ in range(3)]
    with pytest.raises(LimitError, match="has 3 jobs waiting"):
        deep.submit(submission())
    deep.submit(submission(tenant="t2"))
    deep.cancel(jobs[0].id)
    deep.submit(submission())
    quick = Broker(connection, settings_of(server, rate=2.0))
    one = submission(tenant="t3")
    quick.submit(one)
    quick.submit(one)  # the same again costs nothing
    quick.submit(submission(tenant="t3"))
    with pytest.raises(LimitError, match="2 jobs a minute") as caught:
        quick.submit(submission(tenant="t3"))
    assert 0 < caught.value.after <= 60


def test_priorities_positions_and_trying_again(broker: Broker, connection: redis.Redis) -> None:
    jobs = [broker.submit(submission()) for _ in range(3)]
    assert [broker.status(job.id).position for job in jobs] == [0, 1, 2]
    assert broker.reprioritise(jobs[2].id, "high").priority == "high"
    assert broker.status(jobs[2].id).position == 0
    broker.cancel(jobs[0].id)
    with pytest.raises(ConflictError, match="is cancelled"):
        broker.reprioritise(jobs[0].id, "low")
    with pytest.raises(ConflictError, match="is pending"):
        broker.retry(jobs[1].id)
    again = broker.retry(jobs[0].id)
    assert again.state == "pending"
    assert again.id != jobs[0].id
    # In no queue any more, by somebody's hand: said, and not waited for without end.
    connection.delete("rq:queue:comfy.t1.high")
    with pytest.raises(ConflictError, match="is in no queue"):
        broker.reprioritise(jobs[2].id, "low")
    assert {one.tenant: one.waiting for one in broker.queues()} == {"t1": 2}


def test_every_mistake_of_the_settings_at_once(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    good = Settings.from_environment(
        {"REDIS_HOST": "queue", "REDIS_PASSWORD_FILE": str(secret), "WORKER_HEARTBEAT_TIMEOUT": "2m"}
    )
    assert (good.redis.password, good.heartbeat_timeout) == ("hush", 120.0)
    assert "hush" not in repr(good)
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment(
            {
                "REDIS_PORT": "tcp://10.0.0.1:6379",
                "REDIS_PASSWORD": "hush",
                "REDIS_PASSWORD_FILE": str(secret),
                "WORKER_HEARTBEAT_TIMEOUT": "1",
                "WORKER_ATTEMPTS": "many",
                "LOG_LEVEL": "LOUD",
                "REDIS_CA_FILE": "/no/such/file",
            }
        )
    text = str(caught.value)
    assert len(caught.value.messages) == 6
    assert "enableServiceLinks" in text
    assert "hush" not in text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h:99999", "1 to 65535"),
        ("http://h", "redis://HOST"),
        ("redis://:pa?ss@h:1/0", ""),
        ("redis://h:1/zero", "database"),
        ("redis://h:1/0?ssl=1", "nothing follows"),
    ],
)
def test_addresses(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({"REDIS_URL": url})
    assert says in str(caught.value)
    assert "pa?ss" not in str(caught.value)


def test_an_address_stands_above_what_kubernetes_sets() -> None:
    found = Settings.from_environment(
        {"REDIS_URL": "rediss://u:p%2Fw@queue:7000/3", "REDIS_PORT": "tcp://10.0.0.1:6379"}
    ).redis
    assert (found.host, found.port, found.user, found.password, found.tls, found.database) == (
        "queue",
        7000,
        "u",
        "p/w",
        True,
        3,
    )


def test_a_workflow_of_the_largest_size_goes_through(broker: Broker) -> None:
    graph = fake("x" * 7_900_000)
    job = broker.submit(Submission(tenant="t1", workflow=graph))
    assert json.dumps(graph)
    assert broker.status(job.id).state == "pending"
