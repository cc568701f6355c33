"""The document's end-to-end test, step by step: the queue's machine on one network, the GPU machine on another.

Two compose projects in network namespaces of their own. The worker's knows one thing of the other: an address and a
port. Nothing can reach the worker; a job is submitted at user001's own frontend, and its picture is found there.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import wait_for
from served import docker, free_port, picture
from workshop import TENANT, Workshop, needed

PASSWORD = ("sh", "-c", 'REDISCLI_AUTH="$(cat /run/secrets/redis-password)" exec redis-cli "$@"', "redis-cli")


class Apart:
    def __init__(self, vps: Workshop, gpu: Workshop, front: int) -> None:
        self.vps, self.gpu, self.front = vps, gpu, front

    def redis(self, *words: str) -> list[str]:
        """On the queue's machine, as the document does it."""
        return docker("exec", self.vps.container("redis"), *PASSWORD, *words).stdout.split()

    def ask(self, path: str, body: Any = None) -> Any:
        """The tenant's browser."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.front}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def apart(client, tmp_path_factory) -> Iterator[Apart]:
    folders = [tmp_path_factory.mktemp(name) for name in ("vps", "gpu")]
    redis = needed(client, folders[0])
    # The address of this machine on the engine's default bridge: what a container of any network reaches of the host.
    [bridge] = json.loads(docker("network", "inspect", "bridge").stdout)
    address, port, front = bridge["IPAM"]["Config"][0]["Gateway"], free_port(), free_port()
    # Two machines without a common folder: small results come back through the queue.
    shared = {"STORAGE": "queue", "QUEUE_PORT": str(port)}
    vps = Workshop(
        folders[0], redis, QUEUE_ADDRESS=address, FRONT_PORT=str(front), FRONT_TENANT=TENANT, **shared
    )
    gpu = Workshop(folders[1], redis, REDIS_HOST=address, REDIS_PORT=str(port), **shared)
    found = Apart(vps, gpu, front)
    try:
        for one in (vps, gpu):
            one.prepare()
        vps.secret("front-token", vps.token())
        vps.up("queue")
        yield found
    finally:
        for one in (gpu, vps):
            one.clean()


def test_step_5_the_connection_is_checked_before_anything_starts(apart):
    words = (
        "--profile",
        "worker",
        "run",
        "--rm",
        "-T",
        "--no-deps",
        "worker-1",
        "check",
        "--queue",
        "--json",
    )
    said = apart.gpu.compose(*words, check=False)
    steps = {
        step["name"]: step["status"]
        for step in json.JSONDecoder().raw_decode(said, said.index("{"))[0]["steps"]
    }
    assert {steps[name] for name in ("name resolution", "TCP", "password", "rights", "version")} == {"ok"}
    apart.gpu.secret("redis-password", "wrong")
    said = apart.gpu.compose(*words, check=False)
    apart.gpu.secret("redis-password", "correct-horse-42")
    assert "refuses the password" in said


def test_steps_6_and_7_a_worker_registers_and_is_reachable_by_nobody(apart):
    begin = time.monotonic()
    apart.gpu.up("worker")
    assert wait_for(lambda: apart.redis("keys", "worker:*") == ["worker:worker-1"], 60)
    assert wait_for(lambda: apart.redis("hget", "worker:worker-1", "state") == ["idle"], 60)
    print(f"\na worker idle {time.monotonic() - begin:.1f} s after `up`")
    [worker] = json.loads(docker("container", "inspect", apart.gpu.container("worker-1")).stdout)
    [queue] = json.loads(docker("container", "inspect", apart.vps.container("redis")).stdout)
    assert not any((worker["NetworkSettings"]["Ports"] or {}).values())
    assert not set(worker["NetworkSettings"]["Networks"]) & set(queue["NetworkSettings"]["Networks"])
    namespaces = [str(Path(f"/proc/{one['State']['Pid']}/ns/net").readlink()) for one in (worker, queue)]
    assert len(set(namespaces)) == 2
    [network] = worker["NetworkSettings"]["Networks"].values()
    reach = f"import socket; socket.create_connection(('{network['IPAddress']}', 8188), 3)"
    assert docker("exec", apart.vps.container("api"), "/opt/work/bin/python", "-c", reach).returncode != 0


def test_step_8_a_picture_for_user001(apart):
    apart.vps.up("queue", "front")
    assert wait_for(lambda: _answers(apart), 120)
    begin = time.monotonic()
    accepted = apart.ask("/prompt", {"prompt": picture(name="workshop"), "client_id": uuid.uuid4().hex})
    job = accepted["prompt_id"]
    states: list[str] = []

    def ended() -> bool:
        argv = ("exec", apart.vps.container("api"), "comfyrun", "status", job, "--json")
        states.append(json.loads(docker(*argv).stdout)["state"])
        return states[-1] == "completed" and bool(apart.ask(f"/history/{job}"))

    assert wait_for(ended, 60)
    print(f"\nfrom Queue Prompt to the tenant's history: {time.monotonic() - begin:.1f} s")
    assert set(states) <= {"pending", "processing", "completed"}
    [image] = apart.ask(f"/history/{job}")[job]["outputs"]["2"]["images"]
    file = apart.vps.folder / "front" / "output" / image["subfolder"] / image["filename"]
    assert file.name.startswith("workshop")
    assert file.read_bytes()[:4] == b"\x89PNG"
    said = apart.gpu.logs("worker-1")
    assert f"job received: {job} of {TENANT}" in said
    assert f"job completed: {job}" in said
    assert not list(apart.gpu.folder.glob("outputs/**/*.png")), "nothing stays on the GPU machine"


def test_step_9_more_workers(apart):
    apart.gpu.compose("up", "--detach", "--wait", "worker-2", "worker-3")
    wanted = {f"worker:worker-{n}" for n in (1, 2, 3)}
    assert wait_for(lambda: set(apart.redis("keys", "worker:*")) == wanted, 60)
    argv = ("exec", "-i", apart.vps.container("api"), "comfyrun", "submit", "--tenant", TENANT, "--wait", "-")
    ids = [
        subprocess.Popen(
            ["docker", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    for number, one in enumerate(ids):
        one.stdin.write(json.dumps(picture(number)).encode())
        one.stdin.close()
    assert [one.wait(120) for one in ids] == [0] * 6
    for one in ids:
        one.stdout.close()
        one.stderr.close()


def test_shutdown_leaves_no_worker(apart):
    apart.gpu.compose("--profile", "*", "down")
    assert wait_for(lambda: apart.redis("keys", "worker:*") == [], 30)


def _answers(apart: Apart) -> bool:
    try:
        return "exec_info" in apart.ask("/prompt")
    except OSError:
        return False
