"""The document's inputs: names, ranges, presets, what overrides what, what is refused and how."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

# Its text and its code name different ranges; the wider one counts.
DOCUMENT = {
    "initial_gpu_layers": (0, 50),
    "final_gpu_layers": (0, 50),
    "prefetch": (0, 100),
    "selective_packing": (0, 128),
}
SWITCHES = ("threading", "cuda_streams", "batch_move", "event_sync", "compile", "verbose")
LOADER = ("model_name", "model_type", "cast_dtype", "verbose")


@pytest.mark.parametrize("name", ["DGLS_SwappingLoader", "DynamicSwappingLoader"])
def test_every_input_of_the_document(dgls: Any, name: str) -> None:
    from dgls import nodes

    inputs = (nodes.NODES | nodes.ALIASES)[name].INPUT_TYPES()
    found = inputs["required"] | inputs["optional"]
    for key, (least, most) in DOCUMENT.items():
        kind, options = found[key]
        assert kind == "INT"
        assert options["min"] <= least
        assert options["max"] >= most
    assert all(found[key][0] == "BOOLEAN" for key in SWITCHES)
    assert found["gpu_layer_indices"][0] == "STRING"
    assert (found["model"][0], found["layers"][0]) == ("MODEL", "LAYERS")
    assert all(spec[1].get("tooltip") for spec in found.values())


def test_the_loaders_inputs(dgls: Any) -> None:
    from dgls import nodes

    for node in (nodes.ModelLoader, nodes.OriginalModelLoader):
        assert set(LOADER) <= set(node.INPUT_TYPES()["required"])
        assert node.RETURN_TYPES == ("MODEL", "LAYERS")


def test_saved_graphs_hold_values_by_position(dgls: Any) -> None:
    from dgls import nodes

    inputs = nodes.OriginalSwappingLoader.INPUT_TYPES()
    widgets = [k for k in (*inputs["required"], *inputs["optional"]) if k not in ("model", "layers")]
    assert widgets[:11] == [
        "initial_gpu_layers",
        "final_gpu_layers",
        "prefetch",
        "threading",
        "event_sync",
        "cuda_streams",
        "batch_move",
        "selective_packing",
        "verbose",
        "compile",
        "gpu_layer_indices",
    ]


def test_auto_is_the_default_and_each_input_overrides(dgls: Any) -> None:
    from dgls.engine import Auto, Evenly, FirstLast, Indices
    from dgls.settings import understand

    assert understand().policy == Auto()
    assert understand().slots is None
    assert understand(initial=3).policy == FirstLast(first=3, last=0)
    assert understand(initial=0, final=0).policy == FirstLast(first=0, last=0)
    assert understand(initial=3, final=2, indices="1, 4-6").policy == Indices(layers=(1, 4, 5, 6))
    assert understand(residency="evenly").policy == Evenly()
    assert understand(prefetch=0).slots == 1
    assert understand(prefetch=100).slots == 101
    assert understand(vram_budget=1.5).budget == 3 << 29


def test_presets_by_vram(dgls: Any) -> None:
    from dgls.engine import Auto, FirstLast
    from dgls.presets import preset
    from dgls.settings import understand

    assert preset("auto", 24.0) is None
    sizes = {4.0: "6 GB", 6.0: "6 GB", 8.0: "8-12 GB", 12.0: "8-12 GB", 15.7: "16+ GB", 80.0: "16+ GB"}
    for vram, name in sizes.items():
        found = preset("by VRAM", vram)
        assert found is not None
        assert found.name == name
    balanced = understand(preset=preset("8-12 GB", 0))
    assert (balanced.policy, balanced.slots, balanced.compile) == (FirstLast(first=3, last=3), 3, False)
    assert understand(preset=preset("16+ GB", 0)).compile
    assert understand(preset=preset("6 GB", 0), initial=9).policy == FirstLast(first=9, last=2)
    assert understand(preset=preset("auto", 0)).policy == Auto()


def test_what_is_unnecessary_is_said(dgls: Any) -> None:
    from dgls.settings import UNNEEDED, understand

    assert understand(unneeded=dict.fromkeys(UNNEEDED, 0)).notes == ()
    notes = understand(unneeded=dict.fromkeys(UNNEEDED, 1)).notes
    assert [note.split()[0] for note in notes] == list(UNNEEDED)
    assert all("has no effect here: " in note for note in notes)


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("0,x", None, "'x' is no layer number"),
        ("a,-3,1.5", None, "'a', '-3', '1.5' are no layer numbers"),
        ("1-", None, "'1-' is no layer number"),
        ("5-3", 6, "'5-3' is no layer number"),
        ("0,6,9", 6, "there is no layer 6, 9: the model has 6, numbered 0 to 5"),
        ("0-99", 6, "there is no layer 6, 7, 8, 9, 10, 11, 12, 13, …: the model has 6"),
        ("99999", None, "there is no layer 99999: no model has so many layers"),
        ("0-99999999999", None, "there is no layer 10000: no model has so many layers"),
        ("²", None, "'²' is no layer number"),
    ],
)
def test_bad_indices_are_named(dgls: Any, text: str, count: int | None, words: str) -> None:
    from dgls.errors import IndicesError
    from dgls.nodes import SwappingLoader
    from dgls.settings import parse_indices

    with pytest.raises(IndicesError) as caught:
        parse_indices(text, count)
    assert words in str(caught.value)
    assert SwappingLoader.VALIDATE_INPUTS(gpu_layer_indices=text, layer_count=count) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"), [("", None), (" , ", None), ("0", (0,)), ("3,1,1-2;5", (3, 1, 2, 5))]
)
def test_good_indices(dgls: Any, text: str, found: Any) -> None:
    from dgls.nodes import SwappingLoader
    from dgls.settings import parse_indices

    assert parse_indices(text, 6) == found
    assert SwappingLoader.VALIDATE_INPUTS(gpu_layer_indices=text, layer_count=6) is True


# -- how many layers the prompt's model has ---------------------------------------------------------------------
def header(path: Path, keys: list[str]) -> None:
    text = json.dumps({key: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]} for key in keys}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        (["double_blocks.0.a", "double_blocks.1.a", "single_blocks.0.linear1.weight"], 3),
        (["model.diffusion_model.blocks.0.x", "model.diffusion_model.blocks.11.x"], 2),
        (["net.blocks.block0.blocks.0.block.attn.x", "net.blocks.block1.x"], 2),
        (["blocks.0.x", "vace_blocks.0.x"], 2),
        (["transformer_blocks.0.x", "transformer_blocks.0.y"], 1),
        (["down.0.x"], None),
    ],
)
def test_layers_are_counted_in_a_files_header(dgls: Any, tmp_path: Path, keys: list[str], count: Any) -> None:
    from dgls.prompts import in_file

    header(tmp_path / "m.safetensors", keys)
    assert in_file(str(tmp_path / "m.safetensors")) == count


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"nope", None])
def test_a_file_that_is_no_model_is_left_to_the_loader(
    dgls: Any, tmp_path: Path, content: bytes | None
) -> None:
    from dgls.prompts import in_file

    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert in_file(str(path)) is None
    assert in_file("model.gguf") is None


def test_a_prompt_is_told_its_models_layers(dgls: Any, tmp_path: Path) -> None:
    from dgls.nodes import LOADERS, SWAPPERS
    from dgls.prompts import annotate

    header(tmp_path / "m.safetensors", ["blocks.0.x", "blocks.1.x"])
    prompt: dict[str, Any] = {
        "1": {"class_type": "DGLS_ModelLoader", "inputs": {"model_name": "m.safetensors"}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "DGLS_SwappingLoader", "inputs": {"model": ["2", 0], "gpu_layer_indices": "0"}},
        "4": {"class_type": "DGLS_SwappingLoader", "inputs": {"model": ["4", 0], "gpu_layer_indices": "0"}},
        "5": {"class_type": "DGLS_SwappingLoader", "inputs": {"model": ["1", 0], "gpu_layer_indices": ""}},
        "6": {"class_type": "DGLS_SwappingLoader", "inputs": {"model": 3, "gpu_layer_indices": 5}},
        "7": "no node",
    }
    request = annotate(
        {"prompt": prompt}, loaders=LOADERS, swappers=SWAPPERS, path_of=lambda n: str(tmp_path / n)
    )
    counts = {k: n["inputs"].get("layer_count") for k, n in request["prompt"].items() if isinstance(n, dict)}
    assert counts == {"1": None, "2": None, "3": 2, "4": None, "5": None, "6": None}
    assert annotate({"prompt": None}, loaders=LOADERS, swappers=SWAPPERS, path_of=str) == {"prompt": None}


# -- beside the original ----------------------------------------------------------------------------------------
def test_ids_do_not_collide_with_the_originals(dgls: Any) -> None:
    from dgls import nodes

    assert not set(nodes.NODES) & {"DGLSModelLoader", "DynamicSwappingLoader", "DGLSCleanup"}
    assert set(nodes.ALIASES) == {"DGLSModelLoader", "DynamicSwappingLoader", "DGLSCleanup"}
    assert all(node.DEPRECATED for node in nodes.ALIASES.values())


def test_aliases_only_where_the_original_is_not(dgls: Any) -> None:
    from dgls import nodes
    from dgls.aliases import missing

    class Original:
        pass

    assert missing(nodes.ALIASES, {}) == nodes.ALIASES
    there = {"DGLSModelLoader": Original, "DynamicSwappingLoader": Original}
    assert set(missing(nodes.ALIASES, there)) == {"DGLSCleanup"}
    assert missing(nodes.ALIASES, dict(nodes.ALIASES)) == nodes.ALIASES  # loaded again: still ours


def test_fault_10_a_cast_that_is_offered_is_a_cast_that_happens(dgls: Any, models: Any) -> None:
    """cast_target took fp8 silently and nf4 without effect: here each offered type is the type in memory."""
    import torch
    from dgls import loader

    assert "nf4" not in loader.DTYPES
    assert "fp4" not in loader.DTYPES
    for name in ("fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e5m2"):
        model, layers = loader.load("wan.safetensors", name)
        found = {p.dtype for p in layers.modules[0].parameters() if p.ndim == 2}
        assert found == {loader.DTYPES[name]}, name
        del model, layers
    assert loader.options("fp8_e4m3fn_fast") == {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True}


# -- modes ------------------------------------------------------------------------------------------------------
class Properties:
    name = "NVIDIA GB10"
    is_integrated = 1
    total_memory = 128 << 30


@pytest.mark.parametrize(
    ("asked", "environ", "integrated", "mode", "words"),
    [
        ("auto", {}, False, "engine", "has memory of its own"),
        ("auto", {}, True, "unified", "NVIDIA GB10 shares the host's memory"),
        ("auto", {"DGLS_MODE": "engine"}, True, "engine", "this gains nothing"),
        ("auto", {"DGLS_MODE": "off"}, True, "off", "DGLS_MODE=off"),
        ("auto", {"DGLS_MODE": "unified"}, False, "unified", "DGLS_MODE=unified"),
        ("auto", {"DGLS_MODE": "nonsense"}, False, "engine", ""),
        ("engine", {"DGLS_MODE": "off"}, True, "engine", "the node says engine"),
        ("off", {}, False, "off", "the node says off"),
    ],
)
def test_modes(
    dgls: Any,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    environ: dict[str, str],
    integrated: bool,
    mode: str,
    words: str,
) -> None:
    import torch
    from dgls import hardware

    class Here(Properties):
        is_integrated = int(integrated)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Here)
    found, why = hardware.resolve(asked, torch.device("cuda", 0), environ)
    assert found == mode
    assert words in why


def test_the_cpu_is_for_tests(dgls: Any) -> None:
    import torch
    from dgls import hardware

    assert hardware.resolve("auto", torch.device("cpu"), {})[0] == "cpu"
    assert hardware.resolve("off", torch.device("cpu"), {})[0] == "off"
    assert hardware.resolve("engine", torch.device("mps"), {})[0] == "off"
