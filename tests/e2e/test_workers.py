"""compose/workers.yaml with a real engine, a real Redis and the cpu image: from a token to a picture, and through faults."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request

import pytest
from kit import wait_for
from served import docker, picture
from workshop import TENANT, Workshop, needed


@pytest.fixture(scope="module")
def workshop(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    found = Workshop(folder, needed(client, folder))
    found.prepare()
    try:
        found.token()
        found.up("queue", "worker")
        yield found
    finally:
        found.clean()


_PROCESSES = """
import os, sys
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        argv = open(f'/proc/{pid}/cmdline', 'rb').read().split(b'\\0')
        environ = open(f'/proc/{pid}/environ', 'rb').read().split(b'\\0')
    except OSError:
        continue
    kind = 'agent' if argv[-2:] == [b'agent', b''] else 'comfyui' if b'/opt/comfyui/main.py' in argv else ''
    if kind:
        print(kind, pid, *sorted(e.split(b'=')[0].decode() for e in environ if e))
"""


def processes(workshop) -> dict[str, tuple[int, list[str]]]:
    lines = workshop.python("worker-1", _PROCESSES).splitlines()
    return {kind: (int(pid), names) for kind, pid, *names in (line.split() for line in lines)}


def test_a_job_becomes_a_picture(workshop):
    said = workshop.submit(picture(), "--wait")
    (file,) = workshop.folder.glob(f"outputs/{TENANT}/*/*.png")
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert file.parent.name in said
    status, body = workshop.ask("/ready")
    assert (status, json.loads(body)["queue"]) == (200, "ok")
    assert workshop.ask("/v1/jobs")[0] in (401, 404), "nobody without a token"


def test_a_worker_is_outbound_only_and_confined(workshop):
    [found] = json.loads(docker("container", "inspect", workshop.container("worker-1")).stdout)
    host = found["HostConfig"]
    assert not any((found["NetworkSettings"]["Ports"] or {}).values())
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (
        True,
        ["ALL"],
        ["no-new-privileges"],
    )
    assert found["Config"]["User"] == "1000:1000"
    assert not [e for e in found["Config"]["Env"] if "correct-horse" in e], "the password is a file"
    listens = workshop.python("worker-1", "print(open('/proc/net/tcp').read())")
    local = [line.split()[1] for line in listens.splitlines()[1:] if line.split()[3:4] == ["0A"]]
    assert [a for a in local if a.endswith(f"{8188:04X}")] == [f"0100007F:{8188:04X}"], "on loopback alone"


def test_comfyui_knows_nothing_of_the_queue(workshop):
    """Whose custom nodes run anybody's code."""
    found = processes(workshop)
    queue = [n for n in found["comfyui"][1] if n.startswith(("REDIS", "S3_", "WORKER_", "COMFYWORK_"))]
    assert queue == []
    assert "REDIS_PASSWORD_FILE" in found["agent"][1]


def test_a_killed_agent_is_started_again_and_comfyui_goes_on(workshop):
    before = processes(workshop)
    workshop.python("worker-1", f"import os; os.kill({before['agent'][0]}, 9)")
    assert wait_for(lambda: processes(workshop).get("agent", before["agent"])[0] != before["agent"][0], 30)
    assert processes(workshop)["comfyui"][0] == before["comfyui"][0]
    assert "the worker's agent was ended by SIGKILL" in workshop.logs("worker-1")
    workshop.submit(picture(0x00FF00), "--wait")
    done = docker("exec", workshop.container("worker-1"), "comfyrun", "health")
    assert done.returncode == 0, done.stderr
    assert "worker " in done.stdout


def test_a_dead_comfyui_ends_the_container_and_the_policy_starts_it(workshop):
    before = processes(workshop)
    workshop.python("worker-1", f"import os; os.kill({before['comfyui'][0]}, 9)")
    name = workshop.container("worker-1")

    def again():
        [found] = json.loads(docker("container", "inspect", name).stdout)
        return found["RestartCount"] and found["State"]["Running"]

    assert wait_for(again, 60)
    workshop.submit(picture(0x0000FF), "--wait")


def test_a_stop_is_a_drain(workshop):
    name = workshop.container("worker-1")
    begin = time.monotonic()
    docker("stop", name)
    assert time.monotonic() - begin < 25
    [found] = json.loads(docker("container", "inspect", name).stdout)
    assert found["State"]["ExitCode"] == 0
    assert "the job has 10 s, then stopping ComfyUI" in workshop.logs("worker-1")
    docker("start", name)
    workshop.submit(picture(0x00FFFF), "--wait")


def test_a_restart_of_the_queue_loses_nothing(workshop):
    name = workshop.container("worker-1")
    docker("stop", name)
    said = workshop.submit(picture(0x123456))
    docker("kill", "--signal", "KILL", workshop.container("redis"))
    docker("start", workshop.container("redis"))
    docker("start", name)
    job = next(word for word in said.split() if word.count("-") == 4)
    assert wait_for(lambda: any(workshop.folder.glob(f"outputs/{TENANT}/{job}/*.png")), 120)


def test_a_wrong_password_is_said_and_ends_the_worker(workshop):
    """After a few tries, with the code for refused: no restart would help."""
    name = f"{workshop.name}-wrong"
    argv = ["--profile", "scaled", "run", "--detach", "--no-deps", "--name", name]
    argv += ["--env", "REDIS_PASSWORD_FILE=", "--env", "REDIS_PASSWORD=not-the-password", "worker"]
    workshop.compose(*argv)
    try:
        docker("update", "--restart", "no", name)
        assert wait_for(lambda: '"Running": false' in docker("container", "inspect", name).stdout, 90)
        [found] = json.loads(docker("container", "inspect", name).stdout)
        done = docker("logs", name)
        said = done.stdout + done.stderr
        assert found["State"]["ExitCode"] == 77, said[-2000:]
        assert "ended 3 times with exit code 77" in said
        assert "not-the-password" not in said
    finally:
        docker("rm", "--force", "--volumes", name)


def test_the_dashboard_wants_its_password_and_shows_the_queue(workshop):
    workshop.up("queue", "worker", "dashboard")
    url = f"http://127.0.0.1:{workshop.dashboard}/"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    told = base64.b64encode(b"admin:dash-board-42").decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {told}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert b"RQ" in answer.read()


def test_two_pairs_in_one_container(workshop):
    argv = ["--profile", "scaled", "run", "--detach", "--no-deps", "--name", f"{workshop.name}-two"]
    argv += ["--env", "NUM_WORKERS=2", "--env", "WORKER_ID=two", "worker"]
    workshop.compose(*argv)
    try:
        workers = ("exec", workshop.container("api"), "comfyrun", "workers", "--json")
        assert wait_for(lambda: {"two-1", "two-2"} <= _ids(docker(*workers).stdout), 120)
        health = ("exec", f"{workshop.name}-two", "comfyrun", "health")
        assert wait_for(lambda: docker(*health).returncode == 0, 120), docker(*health).stderr
        assert "worker idle, idle" in docker(*health).stdout, "of both"
        docker("stop", "--time", "30", f"{workshop.name}-two")
        [found] = json.loads(docker("container", "inspect", f"{workshop.name}-two").stdout)
        assert found["State"]["ExitCode"] == 0, docker("logs", f"{workshop.name}-two").stderr[-2000:]
    finally:
        docker("rm", "--force", "--volumes", f"{workshop.name}-two")


def _ids(text: str) -> set[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return set()
    rows = found.get("workers", found) if isinstance(found, dict) else found
    return {str(row.get("id")) for row in rows}
