"""ComfyUI's frontend in a real browser: a click on Run, and the picture that a worker made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from queuefrontkit import World, until

pytestmark = pytest.mark.engine
PICTURE = os.environ.get("IMGBUILD_FRONT_PICTURE", "")
"""Where docs/images/front.png is written, when it is to be made anew."""


def _node(number: int, kind: str, at: tuple[int, int], size: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "type": kind,
        "pos": list(at),
        "size": list(size),
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {"Node name for S&R": kind},
        **more,
    }


def _drawn() -> dict[str, Any]:
    """A graph as the editor keeps it: noise in steps, inverted, saved."""
    image = {"name": "IMAGE", "type": "IMAGE"}
    return {
        "last_node_id": 3,
        "last_link_id": 2,
        "nodes": [
            _node(1, "TestSlow", (60, 120), (270, 130), outputs=[{**image, "links": [1]}], widgets_values=[12, 0.25, 7]),
            _node(
                2, "ImageScaleBy", (380, 120), (260, 90), inputs=[{"name": "image", "type": "IMAGE", "link": 1}],
                outputs=[{**image, "links": [2]}], widgets_values=["nearest-exact", 4.0],
            ),
            _node(
                3, "SaveImage", (690, 120), (330, 360), inputs=[{"name": "images", "type": "IMAGE", "link": 2}],
                widgets_values=["browser/made"],
            ),
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }  # fmt: skip


def test_run_in_the_browser(front_world: World, browser: Any) -> None:
    front = front_world.comfys["user001"]
    # Whoever comes for the first time is shown templates.
    httpx.post(f"{front.url}/settings/Comfy.TutorialCompleted", json=True).raise_for_status()
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(front.url)

    def true(words: str, seconds: float = 20) -> None:
        until(lambda: page.evaluate(f"() => Boolean({words})"), seconds, 0.2)

    true("window.app?.graph && window.app?.extensionManager", 120)
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")
    page.evaluate("graph => window.app.loadGraphData(graph)", _drawn())
    page.wait_for_timeout(1000)
    before = len(front_world.broker.jobs("user001", limit=1000))
    page.get_by_test_id("queue-button").or_(page.get_by_role("button", name="Run", exact=True)).first.click()
    until(lambda: len(front_world.broker.jobs("user001", limit=1000)) == before + 1, 20)
    job = front_world.broker.jobs("user001", limit=1)[0]
    true("window.app.runningNodeId != null")
    until(lambda: front_world.job(job.id).state == "completed", 60)
    true("window.app.nodeOutputs['3']?.images?.length")
    shown = page.evaluate("() => window.app.nodeOutputs['3'].images[0]")
    assert shown == {"filename": "made_00001_.png", "subfolder": "browser", "type": "output"}
    true("window.app.graph.getNodeById(3).imgs?.[0]?.naturalWidth === 256")
    page.keyboard.press("q")  # the queue's panel
    page.wait_for_timeout(1500)
    if PICTURE:
        page.screenshot(path=PICTURE)
    assert not errors
    page.close()
    made = front.folder / "output" / "browser" / "made_00001_.png"
    from PIL import Image

    with Image.open(made) as picture:
        # What "drag the picture into the browser" reads.
        assert [node["type"] for node in json.loads(picture.info["workflow"])["nodes"]] == [
            "TestSlow",
            "ImageScaleBy",
            "SaveImage",
        ]
        assert json.loads(picture.info["prompt"])["3"]["inputs"]["filename_prefix"] == "browser/made"
    assert Path(made).stat().st_size
