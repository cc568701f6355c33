"""Does the image serve, generate, keep quiet and stop? Runs on the CPU, for every target."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pngpixels
import pytest
from comfyclient import RefusedError, invert_workflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from runningimage import Running

pytestmark = pytest.mark.engine

WIDTH, HEIGHT, COLOR = 64, 48, 0x3366CC
INVERTED = (0xCC, 0x99, 0x33)


def test_it_is_alive(running: Running, record_property: Callable[[str, object], None]) -> None:
    stats = running.client.system_stats()
    assert stats["devices"][0]["type"] == "cpu"
    assert "--cpu" in stats["system"]["argv"]
    record_property("seconds_to_alive", round(running.seconds_to_alive, 2))
    record_property("seconds_to_ready", round(running.seconds_to_ready, 2))


@pytest.mark.parametrize("arguments", [(), ("--ready",)])
def test_comfyrun_finds_it_healthy(running: Running, arguments: tuple[str, ...]) -> None:
    code, output = running.run("comfyrun", "health", *arguments)
    assert code == 0, output
    assert len(output.splitlines()) == 1
    code, output = running.run("comfyrun", "health", "--json", *arguments)
    assert code == 0, output
    shown = json.loads(output)
    # {} is what its parent tells; None would be that nobody told.
    assert (shown["device"], shown["attention_fallbacks"]) == ("cpu", {})


def test_the_engine_finds_it_healthy(running: Running) -> None:
    deadline = time.monotonic() + 120
    health: dict[str, object] = {}
    while time.monotonic() < deadline:
        running.container.reload()
        health = running.container.attrs["State"].get("Health") or {}
        if not health:
            pytest.skip("the image has no health check (the OCI format of some engines drops it)")
        if health["Status"] == "healthy":
            return
        time.sleep(0.5)
    pytest.fail(f"not healthy after two minutes: {health}")


def test_it_runs_as_the_user_it_was_given(running: Running) -> None:
    assert running.run("id", "-u") == (0, "4321\n")


def test_it_generates_the_right_picture(
    running: Running, record_property: Callable[[str, object], None]
) -> None:
    begin = time.monotonic()
    result = running.client.run(invert_workflow(WIDTH, HEIGHT, COLOR, "smoke"))
    record_property("seconds_of_workflow", round(time.monotonic() - begin, 3))
    (stored,) = result.images
    assert stored.type == "output"
    picture = pngpixels.decode(running.client.view(stored))
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    (color,) = picture.colors()
    # ComfyUI cuts 255 times a float off to a byte, so one below is right too.
    assert all(abs(got - wanted) <= 1 for got, wanted in zip(color[:3], INVERTED, strict=True)), color


def test_it_says_what_is_wrong_with_a_workflow(running: Running) -> None:
    workflow = invert_workflow(WIDTH, HEIGHT, COLOR, "smoke")
    del workflow["2"]["inputs"]["image"]
    with pytest.raises(RefusedError) as caught:
        running.client.submit(workflow)
    assert "2" in caught.value.node_errors


def test_it_knows_its_nodes(running: Running) -> None:
    nodes = running.client.object_info()
    assert {"SaveImage", "KSampler", "CheckpointLoaderSimple", "SaveAudio"} <= nodes.keys()


def test_the_baked_nodes_are_found(running: Running) -> None:
    assert "/opt/nodes/dgls" in running.log()


def test_its_log_is_clean(running: Running) -> None:
    log = running.log()
    assert "Traceback" not in log, log
    assert "IMPORT FAILED" not in log, log


NODE = "/data/input/a-node"
MAKE_NODE = f"mkdir -p {NODE} && touch {NODE}/__init__.py"


def test_a_node_cannot_replace_torch(running: Running) -> None:
    command = f"{MAKE_NODE} && echo torch==2.5.0 > {NODE}/requirements.txt && "
    code, output = running.run("sh", "-c", f"{command} PIP_NO_INDEX=1 comfyrun nodes install {NODE}")
    assert code == 2, output
    assert "refused: a-node asks for torch==2.5.0, and this image has torch 2." in output
    assert running.run("ls", "/data/custom_nodes") == (0, "")


def test_a_node_comes_and_goes(running: Running) -> None:
    command = f"{MAKE_NODE} && echo 'torch>=2' > {NODE}/requirements.txt && "
    code, output = running.run("sh", "-c", f"{command} PIP_NO_INDEX=1 comfyrun nodes install {NODE}")
    assert code == 0, output
    code, output = running.run("comfyrun", "nodes", "list", "--json")
    assert code == 0, output
    assert {n["name"]: n["kind"] for n in json.loads(output)["nodes"]}["a-node"] == "installed"
    assert running.run("comfyrun", "nodes", "remove", "a-node")[0] == 0
    assert running.run("ls", "/data/custom_nodes") == (0, "")


# The last one, since it ends the container that the others share.
def test_it_stops_when_asked(running: Running, record_property: Callable[[str, object], None]) -> None:
    begin = time.monotonic()
    running.container.kill("SIGTERM")
    code = int(running.container.wait(timeout=30)["StatusCode"])
    seconds = time.monotonic() - begin
    record_property("seconds_to_stop", round(seconds, 2))
    record_property("exit_code_on_sigterm", code)
    assert seconds < 10
    assert code == 0, running.log()
