"""comfyrun submit, status, cancel, jobs, workers, queue: as a user calls them, against a real Redis and the real API."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from frontkit import WORKFLOW, Api, Queue, Worker, Working, png

from comfywork.cli import VERBS
from comfywork.cli.queue import VERBS as QUEUE_VERBS


@pytest.fixture
def workflow(tmp_path: Path) -> str:
    path = tmp_path / "made.json"
    path.write_text(json.dumps(WORKFLOW))
    return str(path)


def test_submit_prints_the_id_alone(queue: Queue, workflow: str) -> None:
    done = queue.run("submit", workflow, "--tenant", "user001", "--priority", "high")
    job = queue.broker.status(done.stdout.strip())
    assert (job.tenant, job.priority, job.state) == ("user001", "high", "pending")
    assert "pending" in done.stderr


def test_submit_waits_and_saves(queue: Queue, workflow: str, tmp_path: Path) -> None:
    with Working(queue):
        done = queue.run("submit", workflow, "--output", str(tmp_path / "made"))
    assert (tmp_path / "made" / "2_0.png").read_bytes() == png()
    assert done.stdout.strip() == str(tmp_path / "made" / "2_0.png")
    assert "completed" in done.stderr
    assert "\x1b" not in done.stderr, "no terminal, no escape codes"


def test_json(queue: Queue, workflow: str) -> None:
    with Working(queue):
        job = json.loads(queue.run("submit", workflow, "--wait", "--json").stdout)
    assert job["state"] == "completed"
    assert json.loads(queue.run("status", job["id"], "--json").stdout) == job
    assert json.loads(queue.run("jobs", "--json").stdout) == [job]
    assert json.loads(queue.run("workers", "--json").stdout)[0]["id"] == "worker-1"


def test_a_failed_job_is_exit_code_1(queue: Queue, workflow: str) -> None:
    worker = Worker(queue)
    job = queue.submit()
    worker.fail(worker.take(), "memory", "out of GPU memory")
    done = queue.run("status", job.id, code=1)
    assert "out of GPU memory" in done.stdout
    assert queue.run("status", job.id, "--wait", code=1).stderr.count("out of GPU memory") >= 1
    assert json.loads(queue.run("status", job.id, "--json", code=1).stdout)["failure"]["kind"] == "memory"


def test_set(queue: Queue, workflow: str) -> None:
    done = queue.run("submit", workflow, "--set", "1.color=77", "--set", "Save.filename_prefix=42")
    from comfywork.jobs import fetch

    job = fetch(done.stdout.strip(), queue.broker.connection)
    assert job is not None
    assert job.task.workflow["1"]["inputs"]["color"] == 77
    assert job.task.workflow["2"]["inputs"]["filename_prefix"] == "42"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("1.colour=7", "did you mean 'color'?"),
        ("Sav.filename_prefix=7", "did you mean 'Save'?"),
        ("color=7", "NODE.INPUT=VALUE"),
        ("1.color", "NODE.INPUT=VALUE"),
    ],
)
def test_set_what_there_is_not(queue: Queue, workflow: str, change: str, said: str) -> None:
    assert said in queue.run("submit", workflow, "--set", change, code=2).stderr


def test_inputs(queue: Queue, api: Api, tmp_path: Path) -> None:
    graph = {**WORKFLOW, "3": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    (tmp_path / "Katze.png").write_bytes(png())
    token = tmp_path / "token"
    token.write_text(api.tokens["user001"] + "\n")
    for more in ([], ["--server", api.url, "--token-file", str(token)]):
        done = queue.run(
            "submit", str(tmp_path / "w.json"), "--tenant", "user001",
            "--input", f"cat.png={tmp_path / 'Katze.png'}", *more,
        )  # fmt: skip
        from comfywork.jobs import fetch

        job = fetch(done.stdout.strip(), queue.broker.connection)
        assert job is not None
        key = job.task.inputs["cat.png"]
        with queue.storage.open(key) as opened:
            assert opened.read() == png()
        again = queue.run(
            "submit", str(tmp_path / "w.json"), "--tenant", "user001", "--input", f"cat.png={key}", *more
        )
        assert again.stdout.strip()
    wrong = queue.run("submit", str(tmp_path / "w.json"), "--input", "cta.png=/x", code=2).stderr
    assert "did you mean 'cat.png'?" in wrong
    assert (
        "there is no file"
        in queue.run("submit", str(tmp_path / "w.json"), "--input", "cat.png=/x", code=2).stderr
    )


def test_the_same_over_http(queue: Queue, api: Api, workflow: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(api.tokens["user002"])
    where = ["--server", api.url, "--token-file", str(token)]
    with Working(queue):
        made = queue.run("submit", workflow, "--output", str(tmp_path), *where)
    assert (tmp_path / "2_0.png").read_bytes() == png()
    assert "completed" in made.stderr
    (job,) = json.loads(queue.run("jobs", "--json", *where).stdout)
    assert job["tenant"] == "user002"
    foreign = queue.submit("user001")
    assert "there is no job" in queue.run("cancel", foreign.id, *where, code=2).stderr
    assert queue.run("status", foreign.id, *where, code=2)
    own = queue.submit("user002")
    assert queue.run("cancel", own.id, *where).stdout.split() == [own.id, "cancelled"]
    again = queue.run("queue", "retry", own.id, *where).stdout.strip()
    assert "low" in queue.run("queue", "priority", again, "low", *where).stdout
    assert "NVIDIA H100" in queue.run("workers", *where).stdout


def test_refusals_over_http(queue: Queue, api: Api, workflow: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    done = queue.run("jobs", "--server", api.url, "--token-file", str(token), code=77)
    assert "nobody has this token" in done.stderr
    token.write_text(api.tokens["little"])
    where = ["--server", api.url, "--token-file", str(token)]
    assert "normal at most" in queue.run("submit", workflow, "--priority", "high", *where, code=77).stderr
    assert "wants a token" in queue.run("jobs", "--server", api.url, code=2).stderr


def test_cancel_many(queue: Queue) -> None:
    job, other = queue.submit(), str(uuid.uuid4())
    done = queue.run("cancel", job.id, other, "nonsense", code=2)
    assert f"{job.id}  cancelled" in done.stdout
    assert f"there is no job {other}" in done.stderr
    assert "'nonsense' is no job id" in done.stderr


def test_jobs_of_a_tenant_in_a_state(queue: Queue) -> None:
    first, _second = queue.submit("user001"), queue.submit("user002")
    queue.broker.cancel(first.id)
    done = queue.run("jobs", "--tenant", "user001", "--state", "cancelled")
    assert first.id in done.stdout
    assert done.stdout.count("\n") == 2
    assert "no jobs" in queue.run("jobs", "--tenant", "user003").stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ("[]", "a list"),
        ("{}", "no nodes"),
        ('{"nodes": [], "links": []}', "Export (API)"),
        ('{"1": {"class_type": "A"}}', "has no inputs"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}}', "comes from node 2"),
        ("[" * 100_000, "nests"),
    ],
)
def test_bad_workflows(queue: Queue, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "w.json").write_text(text)
    done = queue.run("submit", str(tmp_path / "w.json"), code=2)
    assert said in done.stderr
    assert queue.run("submit", "-", stdin=text, code=2).stderr
    assert queue.broker.jobs() == []


def test_bad_arguments(queue: Queue, workflow: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png())
    for arguments, said in [
        (["submit", "/nothing.json"], "No such file"),
        (["submit", str(tmp_path / "picture.png")], "is not text"),
        (["submit", workflow, "--tenant", "Ä/1"], "is no tenant"),
        (["submit", workflow, "--priority", "hihg"], "did you mean 'high'?"),
        (["submit", workflow, "--id", "1"], "no job id"),
        (["submit", workflow, "--timeout", "99999"], "a timeout is from 1"),
        (["submit", workflow, "--server", "queue"], "no address"),
        (["sbmit", workflow], "did you mean 'submit'?"),
        (["jobs", "--watch", "--json"], "--watch"),
        (["queue", "clean", "--older", "soon"], "no duration"),
        (["queue", "restore", workflow], "no backup"),
    ]:
        environ = {"COMFYWORK_TOKEN": "x"} if "--server" in arguments else {}
        assert said in queue.run(*arguments, code=2, **environ).stderr, arguments


def test_a_tenant_with_too_much_waiting(queue: Queue, workflow: str) -> None:
    queue.run("submit", workflow, QUEUE_DEPTH_PER_TENANT="1")
    done = queue.run("submit", workflow, QUEUE_DEPTH_PER_TENANT="1", code=75)
    assert "1 is the limit" in done.stderr


def test_no_redis_and_a_wrong_password(queue: Queue, workflow: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    for arguments in (["submit", workflow], ["jobs"], ["workers"], ["status", str(uuid.uuid4())], ["queue", "clean"],
                      ["queue", "backup", str(tmp_path / "b")], ["queue", "load-test", "--jobs", "1"]):  # fmt: skip
        assert "cannot be reached" in queue.run(*arguments, REDIS_PORT="1", code=69).stderr
        refused = queue.run(*arguments, REDIS_PASSWORD_FILE=str(tmp_path / "password"), code=77)
        assert "refuses the password" in refused.stderr
        assert "wrong" not in refused.stderr
    assert "REDIS_PORT" in queue.run("jobs", REDIS_PORT="tcp://10.0.0.1:6379", code=2).stderr


def test_ctrl_c_leaves_the_job(queue: Queue, workflow: str) -> None:
    for more, state in (([], "pending"), (["--cancel-on-interrupt"], "cancelled")):
        process = subprocess.Popen(
            [sys.executable, "-m", "comfywork", "submit", workflow, "--wait", *more],
            env=queue.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        job_id = process.stderr.readline().split()[0]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert ("comfyrun cancel" in said) is (state == "pending")
        assert queue.broker.status(job_id).state == state


def test_a_bar_on_a_terminal(queue: Queue, workflow: str) -> None:
    primary, secondary = pty.openpty()
    with Working(queue, seconds=0.5):
        process = subprocess.Popen(
            [sys.executable, "-m", "comfywork", "submit", workflow, "--wait"],
            env={**queue.environ, "TERM": "xterm-256color"},
            stdout=subprocess.DEVNULL,
            stderr=secondary,
        )
        os.close(secondary)
        said = b""
        while True:
            try:
                piece = os.read(primary, 65536)
            except OSError:
                break
            if not piece:
                break
            said += piece
        assert process.wait(20) == 0
    os.close(primary)
    assert b"\x1b[" in said
    assert b"50%" in said


def test_wait_no_longer(queue: Queue, workflow: str) -> None:
    done = queue.run("submit", workflow, "--wait-timeout", "0.5", code=75)
    assert "has not ended" in done.stderr


def test_backup_and_restore(queue: Queue, tmp_path: Path) -> None:
    worker = Worker(queue)
    done = queue.submit(priority="high")
    worker.complete(worker.take())
    running = queue.submit(priority="high", timeout=90)
    worker.take()
    waiting = [queue.submit("user002", priority="low"), queue.submit()]
    path = tmp_path / "queue.jsonl"
    assert "3 jobs and 1 outputs" in queue.run("queue", "backup", str(path), "--outputs").stderr
    assert path.stat().st_mode & 0o777 == 0o600

    assert json.loads(queue.run("queue", "restore", str(path), "--json").stdout)["present"] == 3
    queue.broker.connection.flushall()
    queue.submit("user001", id=waiting[1].id)
    for expected in ({"submitted": 2, "present": 1}, {"submitted": 0, "present": 3}):
        found = json.loads(
            queue.run("queue", "restore", str(path), "--json", QUEUE_DEPTH_PER_TENANT="1").stdout
        )
        assert {name: found[name] for name in expected} == expected
        assert found["missing"] == found["refused"] == []
    back = queue.broker.status(running.id)
    assert (back.state, back.tenant, back.priority) == ("pending", "user001", "high")
    assert queue.broker.status(waiting[0].id).priority == "low"

    queue.storage.delete(f"user001/{done.id}/2_0.png")
    lost = queue.run("queue", "restore", str(path), code=1)
    assert f"not in the storage: user001/{done.id}/2_0.png" in lost.stderr


def test_a_damaged_backup_restores_nothing(queue: Queue, tmp_path: Path) -> None:
    queue.submit()
    text = queue.run("queue", "backup", "-").stdout
    queue.broker.connection.flushall()
    (tmp_path / "b").write_text(text + '{"kind": "jo')
    assert "line 3" in queue.run("queue", "restore", str(tmp_path / "b"), code=2).stderr
    assert queue.broker.jobs() == []


def test_clean(queue: Queue) -> None:
    worker = Worker(queue)
    ended, failed, waiting = queue.submit(), queue.submit(), queue.submit()
    worker.complete(worker.take())
    worker.fail(worker.take())
    assert "would forget 0" in queue.run("queue", "clean", "--dry-run").stderr
    assert "forgot 1 jobs" in queue.run("queue", "clean", "--older", "0s", "--state", "failed").stderr
    assert {job.id for job in queue.broker.jobs()} == {ended.id, waiting.id}
    assert failed.id not in {job.id for job in queue.broker.jobs()}
    found = json.loads(queue.run("queue", "clean", "--older", "0s", "--outputs", "--json").stdout)
    assert (found["jobs"], found["files"], found["size"]) == (1, 1, len(png()))
    assert list(queue.storage.keys(f"user001/{ended.id}/")) == []
    assert [job.id for job in queue.broker.jobs()] == [waiting.id]
    left = {key for key in queue.broker.connection.scan_iter("*") if ended.id.encode() in key}
    assert left == set()


def test_load_test(queue: Queue) -> None:
    with Working(queue, "worker-1", 0.005), Working(queue, "worker-2", 0.005):
        done = queue.run("queue", "load-test", "--jobs", "60", "--tenants", "6", "--rate", "100", "--json")
    report = json.loads(done.stdout)
    assert (report["completed"], report["unfinished"], report["tenants"]) == (60, 0, 6)
    assert report["waited"]["p50"] <= report["waited"]["p99"] <= report["waited"]["maximum"]
    assert queue.broker.jobs() == []
    table = queue.run("queue", "load-test", "--jobs", "3", "--timeout", "1", code=1)
    assert "3 not ended" in table.stdout
    assert queue.broker.jobs() == []


def test_check(queue: Queue, tmp_path: Path) -> None:
    done = queue.run("queue", "check", code=69)
    assert re.search(r"failed +workers +no worker is there", done.stdout)
    assert "comfyrun worker" in done.stdout
    Worker(queue)
    done = queue.run("queue", "check")
    assert "worker-1 (idle, NVIDIA H100)" in done.stdout
    assert "worker-1 has 12" in done.stdout
    Worker(queue, "worker-2").say(models=0)
    found = json.loads(queue.run("queue", "check", "--json").stdout)
    assert found["ok"]
    assert {step["name"]: step["status"] for step in found["steps"]}["storage"] == "ok"

    gone = queue.run("queue", "check", OUTPUTS_PATH=str(tmp_path / "nothing"), code=69)
    assert re.search(r"failed +storage", gone.stdout)
    (tmp_path / "password").write_text("wrong")
    assert queue.run("queue", "check", REDIS_PASSWORD_FILE=str(tmp_path / "password"), code=77)
    assert "skipped" in queue.run("queue", "check", REDIS_PORT="1", code=69).stdout


def test_watch_ends_by_ctrl_c(queue: Queue) -> None:
    job = queue.submit()
    process = subprocess.Popen(
        [sys.executable, "-m", "comfywork", "jobs", "--watch", "--every", "0.2"],
        env=queue.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown = process.stdout.readline() + process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    assert job.id in shown


def test_help_names_what_each_verb_says_of_itself(queue: Queue) -> None:
    shown = queue.run("--help").stdout
    for verb, line in VERBS.items():
        assert verb in shown
        if verb == "models" and "not in this installation" in queue.run(verb, "--help", code=None).stderr:
            continue  # another part of the project
        assert line.rstrip(".").split(";")[0][:40] in " ".join(queue.run(verb, "--help").stdout.split()), verb
    for verb, line in QUEUE_VERBS.items():
        assert line in " ".join(queue.run("queue", verb, "--help").stdout.split())
