"""Prompts that do not end well: cancelled, failed, refused; the front or the queue gone in between."""

from __future__ import annotations

import signal
import time
import uuid

import httpx
import pytest
from queuefrontkit import Browser, World, picture, until

pytestmark = pytest.mark.engine


def _state(world: World, job: str, state: str, seconds: float = 20) -> None:
    until(lambda: world.job(job).state == state, seconds)


def _long(seed: int = 0) -> dict:  # type: ignore[type-arg]
    return picture("long", seed=seed, steps=200, seconds=0.2)


@pytest.mark.parametrize("named", [True, False])
def test_interrupt_ends_the_job_on_its_worker(front_world: World, named: bool) -> None:
    front, other = front_world.comfys["user001"], front_world.comfys["user002"]
    with Browser(front) as browser, Browser(other) as neighbour:
        theirs = neighbour.queue(picture("theirs", steps=20, seconds=0.2))
        job = browser.queue(_long())
        until(lambda: job in [entry[1] for entry in front.get("/queue")["queue_running"]], 20)
        front.post("/interrupt", {"prompt_id": job} if named else {})
        kind, data = browser.end(job, 20)
        assert kind == "execution_interrupted"
        assert data["node_id"] == "1"
        assert front_world.job(job).state == "cancelled"
        entry = front.get(f"/history/{job}")[job]
        assert entry["status"]["status_str"] == "error"
        assert entry["status"]["messages"][-1][0] == "execution_interrupted"
        assert neighbour.end(theirs, 40)[0] == "execution_success", "of another tenant"


def test_a_foreign_interrupt_does_nothing(front_world: World) -> None:
    front, other = front_world.comfys["user001"], front_world.comfys["user002"]
    with Browser(front) as browser:
        job = browser.queue(picture("mine", steps=15, seconds=0.2))
        until(lambda: job in [entry[1] for entry in front.get("/queue")["queue_running"]], 20)
        other.post("/interrupt", {"prompt_id": job})
        other.post("/queue", {"delete": [job], "clear": True})
        other.post("/interrupt", {})
        assert browser.end(job)[0] == "execution_success"
    assert other.get(f"/history/{job}") == {}
    assert not list((other.folder / "output").glob("mine*"))


@pytest.mark.parametrize("body", ["delete", "clear"])
def test_what_waits_is_cancelled_in_the_queue(front_world: World, body: str) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        running = [browser.queue(_long(seed)) for seed in (1, 2)]
        until(lambda: len(front.get("/queue")["queue_running"]) == 2, 20)
        waiting = [browser.queue(_long(seed)) for seed in (3, 4)]
        gone = waiting[:1] if body == "delete" else waiting
        front.post("/queue", {"delete": gone} if body == "delete" else {"clear": True})
        for job in gone:
            _state(front_world, job, "cancelled")
        assert {entry[1] for entry in front.get("/queue")["queue_pending"]} == set(waiting) - set(gone)
        assert all(front_world.job(job).state == "processing" for job in running)
        assert not [kind for job in gone for kind, _ in browser.of(job)], (
            "ComfyUI says nothing of them either"
        )
        front.post("/queue", {"clear": True})
        front.post("/interrupt", {})
        for job in running:
            assert browser.end(job, 20)[0] == "execution_interrupted"


def test_a_node_that_raises_is_shown_as_ever(front_world: World) -> None:
    front = front_world.comfys["user001"]
    graph = picture("failing")
    graph["3"] = {"class_type": "TestFail", "inputs": {"image": ["1", 0], "message": "no such colour"}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with Browser(front) as browser:
        job = browser.queue(graph)
        kind, data = browser.end(job)
    assert kind == "execution_error"
    assert data["node_id"] == "3"
    assert data["node_type"] == "TestFail"
    assert data["exception_type"] == "ValueError"
    assert data["exception_message"].startswith("no such colour")
    assert any("raise ValueError" in line for line in data["traceback"])
    assert data["current_inputs"]["message"] == ["no such colour"]
    assert data["executed"] == ["1"]
    entry = front.get(f"/history/{job}")[job]
    assert entry["status"]["completed"] is False
    assert entry["status"]["messages"][-1][0] == "execution_error"
    assert front_world.job(job).state == "failed"


def test_a_node_that_the_workers_lack(front_world: World) -> None:
    """The front has a node pack that no worker has."""
    front = front_world.front("user001", name="richer")
    pack = front.folder / "custom_nodes" / "only-here"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "class Only:\n"
        "    INPUT_TYPES = classmethod(lambda cls: {'required': {'image': ('IMAGE',)}})\n"
        "    RETURN_TYPES, FUNCTION, CATEGORY = ('IMAGE',), 'make', 'tests'\n"
        "    def make(self, image): return (image,)\n"
        "NODE_CLASS_MAPPINGS = {'OnlyHere': Only}\n"
    )
    front.start()
    graph = picture("lacking")
    graph["3"] = {"class_type": "OnlyHere", "inputs": {"image": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with Browser(front) as browser:
        job = browser.queue(graph)
        kind, data = browser.end(job)
    assert kind == "execution_error"
    assert data["exception_type"] == "queue.invalid"
    assert "OnlyHere" in data["exception_message"]
    assert "the same custom nodes" in data["exception_message"]
    assert data["node_id"] == "3"
    front.remove()


def test_the_front_is_killed_and_started_again(front_world: World) -> None:
    """One job ends while it is away, one runs on, one waits: all three are found again."""
    front = front_world.front("user001", name="mortal")
    front.start()
    client = uuid.uuid4().hex
    with Browser(front, client) as browser:
        ended = browser.queue(picture("ended", seed=1, steps=15, seconds=0.2))
        runs = browser.queue(picture("runs", seed=2, steps=150, seconds=0.2))
        until(lambda: len(front.get("/queue")["queue_running"]) == 2, 20)
        waits = browser.queue(picture("waits", seed=3, steps=300, seconds=0.2))
        front.kill()
    _state(front_world, ended, "completed", 30)
    front.again()
    with Browser(front, client) as browser:
        until(lambda: ended in front.get("/history"), 20)
        images = front.get(f"/history/{ended}")[ended]["outputs"]["2"]["images"]
        assert (front.folder / "output" / images[0]["filename"]).exists()
        assert browser.end(waits, 120)[0] == "execution_success"
        assert front.get(f"/history/{runs}")[runs]["status"]["status_str"] == "success"
        assert ("executing", {"node": "1"}) in browser.events, "as ComfyUI greets who comes back"
        assert any(kind == "progress" for kind, _ in browser.of(waits))
    front.kill()
    front.again()
    assert front.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert sorted(file.name for file in (front.folder / "output").iterdir()) == [
        "ended_00001_.png",
        "runs_00001_.png",
        "waits_00001_.png",
    ]
    assert "Traceback" not in front.log()
    front.remove()


def test_the_api_is_down(front_world: World) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        runs = browser.queue(picture("runs-on", steps=20, seconds=0.2))
        until(lambda: runs in [entry[1] for entry in front.get("/queue")["queue_running"]], 20)
        front_world.api.stop(signal.SIGKILL)
        try:
            begin = time.monotonic()
            refused = browser.queue(picture("never"), code=400, prompt_id=(never := str(uuid.uuid4())))
            assert 5 < time.monotonic() - begin < 25
            assert refused["node_errors"] == {}
            assert refused["error"]["type"] == "queue_unreachable"
            assert "cannot be reached" in refused["error"]["message"]
            assert "comfyrun api" in refused["error"]["details"]
            assert [entry[1] for entry in front.get("/queue")["queue_running"]] == [runs]
        finally:
            front_world.api.log.clear()
            front_world.start_api()
        assert browser.end(runs, 30)[0] == "execution_success", "what ran is delivered"
        assert browser.end(browser.queue(picture("again")))[0] == "execution_success"
        with pytest.raises(Exception, match="there is no job"):
            front_world.job(never)


def test_the_queue_lost_its_data(front_world: World) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        running = [browser.queue(picture("lost", seed=seed, steps=25, seconds=0.2)) for seed in (1, 2)]
        until(lambda: len(front.get("/queue")["queue_running"]) == 2, 20)
        waits = browser.queue(picture("lost", seed=3))
        front_world.broker.connection.flushall()
        for job in (*running, waits):
            assert browser.end(job, 60)[0] == "execution_success"
            assert len(front.get(f"/history/{job}")[job]["outputs"]["2"]["images"]) == 1


def test_a_limit_is_said(front_world: World) -> None:
    """The tenant's depth: what is too much is refused at once, and nothing else is touched."""
    front = front_world.comfys["user002"]
    tokens = front_world.folder / "tokens.yaml"
    before = tokens.read_text()
    text = before.replace("user002:", "user002:\n  depth: 1\n  sha256:", 1)
    tokens.write_text(text)
    time.sleep(2.5)
    try:
        with Browser(front) as browser:
            jobs = []
            for seed in (1, 2):
                jobs.append(browser.queue(_long(seed)))
                until(lambda: len(front.get("/queue")["queue_running"]) == len(jobs), 20)
            jobs.append(browser.queue(_long(3)))
            refused = browser.queue(_long(4), code=400)
            assert refused["error"]["type"] == "queue_refused"
            assert "1 is the limit" in refused["error"]["message"]
            assert len(front.get("/queue")["queue_pending"]) == 1
            front.post("/queue", {"clear": True})
            front.post("/interrupt", {})
            for job in jobs[:2]:
                browser.end(job, 20)
    finally:
        tokens.write_text(before)


def test_anothers_token_is_refused_at_start(front_world: World) -> None:
    front = front_world.front("user001", name="wrong", token=front_world.tokens["user002"])
    front.start(wait=False)
    assert front.exit_code() == 77
    assert "this token is user002's, and this front is for user001" in front.log()
    front.remove()


def test_a_prompt_id_that_is_taken(front_world: World) -> None:
    one, other = front_world.comfys["user001"], front_world.comfys["user002"]
    with Browser(one) as browser, Browser(other) as foreign:
        job = browser.queue(picture("taken", seed=1))
        assert browser.end(job)[0] == "execution_success"
        refused = foreign.queue(picture("taken", seed=1), code=400, prompt_id=job)
        assert "is taken" in refused["error"]["message"]
    assert httpx.get(f"{other.url}/history/{job}").json() == {}
