"""On a GPU: what the image was made for. Without one each test is skipped and counted; `--gpu on` makes that a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from imagecontainers import STANDARD, Recipe, new_name
from runningimage import serving
from tinyworkflows import WAN_LATENT, diffusion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imagecontainers import Engine
    from imageresults import ImageResults
    from runningimage import Running

    from imgbuild.plan import Plan

pytestmark = [pytest.mark.ring3, pytest.mark.gpu]

HERE = Path(__file__).parent
# A latent as numbers, and how far two of them are from each other.
_COMPARE = """
import sys
from safetensors import safe_open
def read(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("latent_tensor").double().flatten()
a, b = map(read, sys.argv[1:])
print(float((a - b).norm() / a.norm()), bool(b.isfinite().all()))
"""


@pytest.fixture(scope="module")
def checked(gpu: tuple[str, ...], engine: Engine, image: str, results: ImageResults) -> dict[str, Any]:
    """What `comfyrun check` finds: it tries every kernel of the image against attention in fp32."""
    options = (*STANDARD, *gpu)
    done = engine.run(
        image, "check", "--json", entrypoint="comfyrun", options=options, timeout=600, check=False
    )
    found: dict[str, Any] = json.loads(done.out)
    results.facts["preflight"] = {k: found.get(k) for k in ("device", "dropped", "exit_code", "seconds")}
    return found


def finding(checked: dict[str, Any], name: str) -> dict[str, Any]:
    found = [f for f in checked["findings"] if f["check"] == name]
    assert found, f"no check {name!r} among {[f['check'] for f in checked['findings']]}"
    return dict(found[0])


def test_this_machine_is_what_it_was_made_for(checked: dict[str, Any]) -> None:
    """Device, driver, memory, folders: `comfyrun check` has nothing against a start."""
    assert checked["exit_code"] == 0, [f for f in checked["findings"] if f["severity"] == "error"]


@pytest.mark.parametrize("name", ["device", "driver", "vram", "probe"])
def test_a_check_of_the_gpu_passes(checked: dict[str, Any], name: str) -> None:
    assert finding(checked, name)["severity"] in ("ok", "info")


def test_a_kernel_computes_right(kernel: str, checked: dict[str, Any], plan: Plan) -> None:
    """Against attention in fp32, directly and through ComfyUI's own function, also with a mask."""
    if kernel == "probe":
        assert finding(checked, "probe")["severity"] == "ok"
        return
    assert kernel not in (checked.get("dropped") or {})
    found = [f for f in checked["findings"] if kernel in f["check"]]
    assert found
    assert all(f["severity"] == "ok" for f in found), found


@pytest.fixture(scope="module")
def data(engine: Engine, image: str, gpu: tuple[str, ...], test_nodes: dict[str, bytes]) -> Iterator[str]:
    """A volume with the tiny models."""
    with engine.volume(new_name("gpu")) as name:
        engine.fill(image, f"{name}:/data", test_nodes, user=Recipe().user)
        script = (HERE / "tinymodels.py").read_text(encoding="utf-8")
        options = ("--user", Recipe().user, "--volume", f"{name}:/data")
        made = engine.run(
            *(image, "-", "/data/models", "sd15", "wan"),
            entrypoint="python",
            options=(*STANDARD, *options),
            stdin=script,
            timeout=900,
        )
        assert "wan" in made.out
        yield name


def generated(running: Running, workflow: dict[str, Any]) -> str:
    """The path of the latent that a workflow saves."""
    (stored,) = running.client.run(workflow, timeout=600).files("latents")
    return f"/data/output/{stored.subfolder}/{stored.filename}"


@pytest.fixture(scope="module")
def reference(engine: Engine, image: str, gpu: tuple[str, ...], data: str, ready_timeout: float) -> str:
    """A tiny Wan's latent with PyTorch's own attention."""
    recipe = Recipe(words=("serve",), environment={"COMFY_ATTENTION": "sdpa"}, options=gpu)
    with serving(engine, image, recipe, mounts=(f"{data}:/data",), timeout=ready_timeout) as running:
        assert running.client.system_stats()["devices"][0]["type"] == "cuda"
        return generated(running, diffusion("tiny-wan.safetensors", WAN_LATENT, pooled=0))


@pytest.mark.parametrize("attention", ["auto", "sage", "flash"])
def test_it_generates_with_each_attention(
    engine: Engine,
    image: str,
    gpu: tuple[str, ...],
    data: str,
    reference: str,
    ready_timeout: float,
    attention: str,
    plan: Plan,
) -> None:
    """The same latent as with PyTorch's attention, but for rounding; and no call fell back to it."""
    names = {"sage": "sageattention", "flash": "flash-attn"}
    if attention in names and names[attention] not in {k.name for k in plan.kernels}:
        pytest.skip(f"the plan has no {names[attention]}")
    recipe = Recipe(words=("serve",), environment={"COMFY_ATTENTION": attention}, options=gpu)
    with serving(engine, image, recipe, mounts=(f"{data}:/data",), timeout=ready_timeout) as running:
        made = generated(running, diffusion("tiny-wan.safetensors", WAN_LATENT, pooled=0))
        code, text = running.run("python", "-c", _COMPARE, reference, made)
        assert code == 0, text
        distance, finite = text.split()
        assert finite == "True"
        assert (
            float(distance) < 0.05
        )  # int8 keys and fp8 values: a few hundredths of the signal after two steps
        code, text = running.run("comfyrun", "health", "--json")
        assert json.loads(text)["attention_fallbacks"] in ({}, None)


def test_dgls_generates_the_same(
    engine: Engine, image: str, gpu: tuple[str, ...], data: str, reference: str, ready_timeout: float
) -> None:
    """The model's blocks swapped in from host memory: the same latent as with the model on the GPU."""
    recipe = Recipe(words=("serve",), environment={"COMFY_ATTENTION": "sdpa"}, options=gpu)
    with serving(engine, image, recipe, mounts=(f"{data}:/data",), timeout=ready_timeout) as running:
        nodes = running.client.object_info()
        if "DGLS_ModelLoader" not in nodes:
            pytest.skip("the image has no DGLS_ModelLoader")
        workflow = diffusion("tiny-wan.safetensors", WAN_LATENT, pooled=0)
        workflow["1"] = {"class_type": "DGLS_ModelLoader", "inputs": defaults(nodes["DGLS_ModelLoader"])}
        names = nodes["DGLS_ModelLoader"]["input"]["required"]
        loader = next(name for name, kind in names.items() if "tiny-wan.safetensors" in str(kind[0]))
        workflow["1"]["inputs"][loader] = "tiny-wan.safetensors"
        code, text = running.run("python", "-c", _COMPARE, reference, generated(running, workflow))
        assert code == 0, text
        assert float(text.split()[0]) < 0.01


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """A value for each required input of a node: its default, else the first of its choices."""
    found = {}
    for name, kind in info["input"]["required"].items():
        options = kind[1] if len(kind) > 1 else {}
        if "default" in options:
            found[name] = options["default"]
        elif isinstance(kind[0], list) and kind[0]:
            found[name] = kind[0][0]
    return found
