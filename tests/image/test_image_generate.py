"""End to end on the CPU with real ComfyUI: tiny models with random weights, the shipped workflows, over HTTP and /ws."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pngpixels
import pytest
from comfyclient import Event, Template, load_template
from tinyworkflows import FLUX_LATENT, WAN_LATENT, diffusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageresults import ImageResults
    from runningimage import Running

    from imgbuild.project import Project

pytestmark = [pytest.mark.ring2, pytest.mark.heavy]

HERE = Path(__file__).parent
CHECKPOINT = "tiny-sd15.safetensors"
# What the documents' values become where a CPU has to be done in seconds.
SMALL = {"checkpoint": CHECKPOINT, "steps": 3, "seed": 7}
PATIENCE = 600  # seconds for one workflow, on a machine that has other work too


@pytest.fixture(scope="session")
def models(running: Running, results: ImageResults) -> list[str]:
    """The tiny models, made in the running container by its own Python."""
    script = (HERE / "tinymodels.py").read_text(encoding="utf-8")
    begin = time.monotonic()
    code, output = running.run(
        "python", "-", "/data/models", "sd15", "wan", "flux", stdin=script, timeout=1200
    )
    assert code == 0, output
    results.facts["seconds_to_make_models"] = round(time.monotonic() - begin, 1)
    return [*running.client.models("checkpoints"), *running.client.models("diffusion_models")]


@pytest.fixture(scope="session")
def txt2img(project: Project) -> Template:
    return load_template(project.images / "workflows/txt2img.json")


@pytest.fixture(scope="session")
def img2img(project: Project) -> Template:
    return load_template(project.images / "workflows/img2img.json")


@pytest.fixture(scope="session")
def batch(project: Project) -> Template:
    return load_template(project.images / "workflows/batch.json")


def generate(running: Running, workflow: Any) -> list[bytes]:
    result = running.client.run(workflow, timeout=PATIENCE)
    return [running.client.view(image) for image in result.images]


def check(data: bytes, width: int, height: int) -> pngpixels.Picture:
    """A picture of that size in which something is to be seen: no one colour, no NaN's black."""
    picture = pngpixels.decode(data)
    assert (picture.width, picture.height) == (width, height)
    assert len(picture.colors()) > 50
    return picture


def test_the_tiny_models_are_found(models: list[str]) -> None:
    assert {CHECKPOINT, "tiny-wan.safetensors", "tiny-flux.safetensors"} <= set(models)


def test_txt2img(
    running: Running,
    models: list[str],
    txt2img: Template,
    results: ImageResults,
    record_property: Callable[[str, object], None],
) -> None:
    """The shipped workflow, checkpoint to picture."""
    workflow = txt2img.fill(**SMALL, width=128, height=96, prefix="ring2/txt2img")
    begin = time.monotonic()
    (data,) = generate(running, workflow)
    record_property("seconds_of_txt2img", round(time.monotonic() - begin, 2))
    check(data, 128, 96)
    results.picture("txt2img", data, "txt2img.json: tiny SD 1.5, 3 steps, seed 7")


def test_the_picture_holds_its_workflow(running: Running, models: list[str], txt2img: Template) -> None:
    """Dropped on ComfyUI, a picture gives back what made it."""
    workflow = txt2img.fill(**SMALL, width=64, height=64, prefix="ring2/metadata")
    (data,) = generate(running, workflow)
    at = data.index(b"tEXtprompt\0")
    size = int.from_bytes(data[at - 4 : at], "big")
    assert json.loads(data[at + 11 : at + 4 + size]) == workflow


def test_the_same_seed_gives_the_same_picture(running: Running, models: list[str], txt2img: Template) -> None:
    """Twice, with everything unloaded in between so that it is really computed twice; another seed, another picture."""
    workflow = txt2img.fill(**SMALL, width=64, height=64, prefix="ring2/seed")
    pictures = []
    for _ in range(2):
        for pause in (
            1,
            5,
            20,
        ):  # it is unloaded by the worker between two prompts, and a busy machine takes its time
            running.client.free()
            time.sleep(pause)
            result = running.client.run(workflow, timeout=PATIENCE)
            if "5" not in result.cached:
                break
        assert "5" not in result.cached, "the sampler ran"
        pictures.append(pngpixels.decode(running.client.view(result.images[0])))
    assert pictures[0] == pictures[1]
    (other,) = generate(
        running, txt2img.fill(**{**SMALL, "seed": 8}, width=64, height=64, prefix="ring2/seed")
    )
    assert pngpixels.decode(other) != pictures[0]


def test_img2img(
    running: Running, models: list[str], txt2img: Template, img2img: Template, results: ImageResults
) -> None:
    """The shipped workflow on an uploaded picture: of that picture's size, and another picture gives another result."""
    made = []
    for seed in (1, 2):
        (source,) = generate(
            running, txt2img.fill(**{**SMALL, "seed": seed}, width=96, height=64, prefix="ring2/source")
        )
        name = running.client.upload(f"source-{seed}.png", source).name
        (data,) = generate(running, img2img.fill(**SMALL, image=name, prefix="ring2/img2img"))
        made.append(check(data, 96, 64))
        results.picture(f"img2img {seed}", data, f"img2img.json: of a picture with seed {seed}, denoise 0.75")
    assert made[0] != made[1]


def test_batch(running: Running, models: list[str], batch: Template, results: ImageResults) -> None:
    """The shipped workflow: four pictures at once, each another one."""
    found = generate(running, batch.fill(**SMALL, width=64, height=64, prefix="ring2/batch"))
    assert len(found) == 4
    pictures = [check(data, 64, 64) for data in found]
    assert all(a != b for i, a in enumerate(pictures) for b in pictures[:i])
    for i, data in enumerate(found):
        results.picture(f"batch {i + 1}", data, "batch.json: one of four")


def test_the_websocket_tells_the_progress(running: Running, models: list[str], txt2img: Template) -> None:
    """Start, each step of the sampler, each node, the end: in that order and of this workflow only."""
    seen: list[Event] = []
    workflow = txt2img.fill(**{**SMALL, "steps": 4, "seed": 99}, width=64, height=64, prefix="ring2/socket")
    result = running.client.watch(workflow, seen.append, timeout=PATIENCE)
    kinds = [event.kind for event in seen]
    assert len(result.images) == 1
    assert kinds.index("execution_start") < kinds.index("progress") < kinds.index("execution_success")
    steps = [e.data["value"] for e in seen if e.kind == "progress" and e.data.get("node") in ("5", None)]
    assert steps == sorted(steps)
    assert steps[-1] == 4
    executed = [e.data["node"] for e in seen if e.kind == "executed"]
    assert executed == ["7"]


# Of a saved latent, in the container: its shape, whether every number is one, and how much they differ.
_LOOK = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as file:
    x = file.get_tensor("latent_tensor").float()
print(list(x.shape), bool(x.isfinite().all()), float(x.std()), int(x.double().abs().sum() * 1e6))
"""


def look(running: Running, workflow: Any) -> tuple[str, float, str]:
    """Shape, spread and a checksum of the latent that a workflow saves. The numbers are finite."""
    (stored,) = running.client.run(workflow, timeout=PATIENCE).files("latents")
    code, output = running.run("python", "-c", _LOOK, f"/data/output/{stored.subfolder}/{stored.filename}")
    assert code == 0, output
    shape, _, rest = output.partition("] ")
    finite, spread, checksum = rest.split()
    assert finite == "True"
    return f"{shape}]", float(spread), checksum


@pytest.mark.parametrize(
    ("model", "latent", "pooled", "shape"),
    [
        ("tiny-wan.safetensors", WAN_LATENT, 0, "[1, 16, 2, 8, 8]"),
        ("tiny-flux.safetensors", FLUX_LATENT, 768, "[1, 16, 8, 8]"),
    ],
    ids=["wan", "flux"],
)
def test_a_diffusion_model(
    running: Running, models: list[str], model: str, latent: dict[str, Any], pooled: int, shape: str
) -> None:
    """Loaded, sampled twice with one seed to the same numbers, and with another to others."""
    first = look(running, diffusion(model, latent, pooled=pooled))
    assert first[0] == shape
    assert first[1] > 0.01
    running.client.free()
    time.sleep(1)
    assert look(running, diffusion(model, latent, pooled=pooled)) == first
    assert look(running, diffusion(model, latent, pooled=pooled, seed=8))[2] != first[2]


def test_200_prompts_leave_no_memory_behind(
    running: Running,
    models: list[str],
    txt2img: Template,
    results: ImageResults,
    record_property: Callable[[str, object], None],
) -> None:
    """The server's memory after 200 generated pictures is what it was after 40, give or take 64 MB."""
    marks = {}
    begin = time.monotonic()
    for count in range(1, 201):
        workflow = txt2img.fill(
            checkpoint=CHECKPOINT, steps=1, cfg=1.0, seed=count, width=16, height=16, prefix="ring2/many"
        )
        running.client.run(workflow, timeout=PATIENCE)
        if count in (10, 40, 80, 120, 160, 200):
            marks[count] = running.memory()
    record_property("seconds_of_200_prompts", round(time.monotonic() - begin, 1))
    results.facts["memory_by_prompts"] = marks
    assert marks[200] - marks[40] < 64 << 20, marks
