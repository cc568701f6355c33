"""Queue Prompt as a browser does it: ComfyUI's real frontend server, a real queue, real workers."""

from __future__ import annotations

import io
import json
import time
import uuid

import httpx
import pytest
from PIL import Image
from queuefrontkit import Browser, World, picture, until

pytestmark = pytest.mark.engine


def test_events_come_as_local_execution_sends_them(front_world: World) -> None:
    front = front_world.comfys["user001"]
    graph = picture("events/made", seed=1, steps=4, seconds=0.3)
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph["4"] = {"class_type": "TestSay", "inputs": {"image": ["1", 0]}}
    with Browser(front) as browser:
        job = browser.queue(graph)
        assert browser.end(job)[0] == "execution_success"
        events = browser.of(job)
    kinds = [kind for kind, _ in events]
    assert kinds[:2] == ["execution_start", "execution_cached"]
    assert kinds[-2:] == ["execution_success", "executing"]
    assert next(d["node"] for k, d in events if k == "executing") == "1"
    assert events[-1][1]["node"] is None
    assert [d["value"] for k, d in events if k == "progress"] == sorted(
        d["value"] for k, d in events if k == "progress"
    )
    states = [d["nodes"]["1"]["state"] for k, d in events if k == "progress_state" and "1" in d["nodes"]]
    assert states[0] == "running"
    assert states[-1] == "finished"
    node = next(d["nodes"]["1"] for k, d in events if k == "progress_state")
    assert node == {
        "value": node["value"],
        "max": node["max"],
        "state": "running",
        "node_id": "1",
        "prompt_id": job,
        "display_node_id": "1",
        "parent_node_id": None,
        "real_node_id": "1",
    }
    executed = {d["node"]: d for k, d in events if k == "executed"}
    assert executed["2"] == {
        "node": "2",
        "display_node": "2",
        "output": {"images": [{"filename": "made_00001_.png", "subfolder": "events", "type": "output"}]},
        "prompt_id": job,
    }
    assert executed["4"]["output"] == {"text": ["(1, 64, 64, 3)"]}
    for node in ("2", "3"):
        image = executed[node]["output"]["images"][0]
        shown = httpx.get(f"{front.url}/view", params=image)
        assert Image.open(io.BytesIO(shown.content)).size == (64, 64)
    assert front_world.job(job).state == "completed"
    assert front_world.job(job).tenant == "user001"


def test_history_is_what_local_execution_leaves(front_world: World) -> None:
    """The same graph by the front and by the worker's own ComfyUI."""
    front, local = front_world.comfys["user001"], front_world.comfys["worker-1"]
    found = []
    for comfy in (front, local):
        with Browser(comfy) as browser:
            job = browser.queue(picture("history", seed=2))
            browser.end(job)
            entry = comfy.get(f"/history/{job}")[job]
            found.append((entry, [kind for kind, _ in browser.of(job)], job))
    (front_entry, front_kinds, front_job), (local_entry, local_kinds, local_job) = found

    def plain(entry: dict, job: str) -> dict:  # type: ignore[type-arg]
        text = json.dumps(entry, sort_keys=True).replace(job, "JOB")
        entry = json.loads(text)
        entry["prompt"][0] = 0
        for name in ("client_id", "create_time"):
            entry["prompt"][3].pop(name)
        entry["prompt"][4].sort()
        for message in entry["status"]["messages"]:
            message[1].pop("timestamp")
        return entry

    assert plain(front_entry, front_job) == plain(local_entry, local_job)

    def once(kinds: list[str]) -> list[str]:
        kept = [kind for kind in kinds if kind not in ("progress", "progress_state")]
        # Files are known when the job has ended: `executed` of a node that saves comes after the last node.
        return sorted(kept)

    assert once(front_kinds) == once(local_kinds)


def test_names_go_on_where_the_folder_stands(front_world: World) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        names = []
        for seed in (1, 2, 3):
            job = browser.queue(picture("counted", seed=seed, steps=1, seconds=0))
            browser.end(job)
            outputs = front.get(f"/history/{job}")[job]["outputs"]
            names += [image["filename"] for image in outputs["2"]["images"]]
    assert names == ["counted_00001_.png", "counted_00002_.png", "counted_00003_.png"]
    assert {file.name for file in (front.folder / "output").glob("counted*")} == set(names)
    assert not list((front.folder / "output").glob(".*.part"))


def test_a_batch_keeps_its_order(front_world: World) -> None:
    front = front_world.comfys["user001"]
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 3, "color": 255},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "batch"}},
    }
    with Browser(front) as browser:
        for expected in (1, 4):
            job = browser.queue(graph)
            assert browser.end(job)[0] == "execution_success"
            images = front.get(f"/history/{job}")[job]["outputs"]["2"]["images"]
            assert [i["filename"] for i in images] == [
                f"batch_{n:05}_.png" for n in range(expected, expected + 3)
            ]


def test_the_picture_holds_the_graph_as_it_was_drawn(front_world: World) -> None:
    front = front_world.comfys["user001"]
    graph = picture("drawn/here", seed=5)
    drawn = {"id": str(uuid.uuid4()), "nodes": [{"id": 1, "type": "TestSlow"}]}
    with Browser(front) as browser:
        job = browser.queue(graph, extra_data={"extra_pnginfo": {"workflow": drawn}})
        browser.end(job)
    with Image.open(front.folder / "output" / "drawn" / "here_00001_.png") as made:
        assert json.loads(made.info["prompt"]) == graph
        assert json.loads(made.info["workflow"]) == drawn


def test_two_at_once_on_two_workers(front_world: World) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        begin = time.monotonic()
        jobs = [browser.queue(picture("two", seed=seed, steps=10, seconds=0.3)) for seed in (1, 2, 3)]
        queue = until(lambda: (q := front.get("/queue")) and len(q["queue_running"]) == 2 and q, 20)
        assert [entry[1] for entry in queue["queue_pending"]] == [
            job for job in jobs if job not in [entry[1] for entry in queue["queue_running"]]
        ]
        assert len(queue["queue_pending"]) == 1
        for job in jobs:
            assert browser.end(job)[0] == "execution_success"
        assert time.monotonic() - begin < 9 + 8, "three jobs of 3 s on two workers"
        assert front.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert {front_world.job(job).worker for job in jobs} == {"worker-1", "worker-2"}
    names = {
        i["filename"] for job in jobs for i in front.get(f"/history/{job}")[job]["outputs"]["2"]["images"]
    }
    assert names == {f"two_{n:05}_.png" for n in (1, 2, 3)}


def test_an_input_travels_with_the_job(front_world: World) -> None:
    front = front_world.comfys["user001"]
    content = io.BytesIO()
    Image.new("RGB", (40, 24), (10, 200, 30)).save(content, "PNG")
    files = {"image": ("a cat (1).png", content.getvalue(), "image/png")}
    uploaded = httpx.post(f"{front.url}/upload/image", files=files, data={"subfolder": "mine"}).json()
    name = f"{uploaded['subfolder']}/{uploaded['name']}"
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    }
    with Browser(front) as browser:
        job = browser.queue(graph)
        assert browser.end(job)[0] == "execution_success", browser.of(job)
    with Image.open(front.folder / "output" / "inverted_00001_.png") as made:
        assert made.getpixel((3, 3)) == pytest.approx((245, 55, 225), abs=1)
        assert json.loads(made.info["prompt"]) == graph


def test_an_output_as_the_next_input(front_world: World) -> None:
    front = front_world.comfys["user001"]
    with Browser(front) as browser:
        browser.end(browser.queue(picture("first", seed=9)))
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "first_00001_.png [output]"}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "second"}},
        }
        job = browser.queue(graph)
        assert browser.end(job)[0] == "execution_success", browser.of(job)
    assert (front.folder / "output" / "second_00001_.png").exists()


def test_only_the_chosen_output_runs(front_world: World) -> None:
    """What "Queue Selected Output Nodes" sends."""
    front = front_world.comfys["user001"]
    graph = picture("chosen", seed=4)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "not-chosen"}}
    with Browser(front) as browser:
        job = browser.queue(graph, partial_execution_targets=["2"])
        assert browser.end(job)[0] == "execution_success"
    assert (front.folder / "output" / "chosen_00001_.png").exists()
    assert not list((front.folder / "output").glob("not-chosen*"))


def test_models_of_the_workers_are_offered(front_world: World) -> None:
    front = front_world.comfys["user001"]
    model = "of-the-workers.safetensors"
    assert model in front.get("/models/checkpoints")
    assert (
        model
        in front.get("/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"]["required"][
            "ckpt_name"
        ][0]
    )
    assert {"name": model, "pathIndex": 0} in front.get("/experiment/models/checkpoints")
    graph = picture("model", seed=3)
    graph["3"] = {"class_type": "TestNeedsModel", "inputs": {"image": ["1", 0], "name": model}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with Browser(front) as browser:
        assert browser.end(browser.queue(graph))[0] == "execution_success"
        graph["3"]["inputs"]["name"] = "nobody-has-it.safetensors"
        refused = browser.queue(graph, code=400)
    assert refused["node_errors"]["3"]["errors"][0]["type"] == "value_not_in_list"


def test_a_graph_that_is_wrong_is_refused_as_ever(front_world: World) -> None:
    front = front_world.comfys["user001"]
    graph = picture()
    graph["1"]["inputs"]["steps"] = 0
    before = len(front_world.broker.jobs("user001", limit=1000))
    with Browser(front) as browser:
        refused = browser.queue(graph, code=400)
    assert refused["error"]["type"] == "prompt_outputs_failed_validation"
    assert refused["node_errors"]["1"]["errors"][0]["type"] == "value_smaller_than_min"
    assert len(front_world.broker.jobs("user001", limit=1000)) == before
