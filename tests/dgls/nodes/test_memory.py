"""ComfyUI's memory manager, LoRA, clones, two models: told the truth, kept apart, given back."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

SOME = {"initial_gpu_layers": 1, "final_gpu_layers": 1, "prefetch": 1}
NONE = {"initial_gpu_layers": 0, "final_gpu_layers": 0, "prefetch": 1}


def weights(model: Any) -> dict[str, Any]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


# -- ComfyUI's memory manager -----------------------------------------------------------------------------------
def test_fault_07_the_memory_manager_knows(dgls: Any, models: Any) -> None:
    from comfy import model_management
    from sampling import sample, stock, swapping

    whole = stock("wan.safetensors").model_size()
    model = swapping("wan.safetensors", **NONE)
    assert model.loaded_size() == 0
    assert model.model_size() == whole
    sample(model)
    state = model.dgls
    (loaded,) = [each for each in model_management.current_loaded_models if each.model.is_clone(model)]
    held = state.rest_bytes + state.session.device_bytes
    assert loaded.model_loaded_memory() == held < whole
    assert loaded.model_offloaded_memory() == whole - held
    assert state.session.resident_bytes == 0
    assert state.rest_bytes + state.layer_bytes == whole
    model_management.unload_all_models()
    assert (model.loaded_size(), state.session.device_bytes) == (0, 0)


def test_a_budget_is_all_that_is_asked_for(dgls: Any, models: Any) -> None:
    from sampling import sample, swapped, swapping

    model = swapping("wan.safetensors", vram_budget=0.008)
    budget = model.dgls_settings.budget
    assert (
        model.model_size() == model.dgls.rest_bytes + budget < model.dgls.rest_bytes + model.dgls.layer_bytes
    )
    assert model.clone().clone().model_size() == model.model_size()
    assert swapped(model).model_size() == model.dgls.rest_bytes + model.dgls.layer_bytes
    sample(model)
    assert 0 < model.dgls.session.device_bytes <= budget


def test_partial_unload_gives_up_residents_and_nothing_breaks(dgls: Any, models: Any) -> None:
    import torch
    from comfy import model_management
    from sampling import sample, stock, swapping

    expected = sample(stock("wan.safetensors"))
    model = swapping("wan.safetensors", gpu_layer_indices="0-4", prefetch=1)
    sample(model)
    before = model.loaded_size()
    (loaded,) = [each for each in model_management.current_loaded_models if each.model.is_clone(model)]
    asked = 2 * max(model.dgls.session.layer_bytes)
    assert loaded.model_unload(asked) is False  # it stays loaded, with less
    assert before - model.loaded_size() >= asked
    assert torch.equal(sample(model), expected)
    assert loaded.model.partially_unload(torch.device("cpu"), 1e32) > 0
    assert model.dgls.session.resident_bytes == 0
    assert torch.equal(sample(model), expected)


def test_what_comfyui_has_left_is_the_budget(dgls: Any, models: Any) -> None:
    import torch
    from sampling import swapping

    model = swapping("wan.safetensors", prefetch=1)
    one = model.dgls.layer_bytes // 6
    room = model.dgls.rest_bytes + 4 * one
    model.partially_load(torch.device("cpu"), room)
    assert model.dgls.rest_bytes < model.loaded_size() <= room
    assert model.dgls.session.resident_bytes > 0
    model.partially_load(torch.device("cpu"), -one)
    assert model.loaded_size() <= room - one
    model.partially_load(torch.device("cpu"), 1e32)
    assert model.dgls.session.resident_bytes == model.dgls.layer_bytes
    model.detach()
    assert model.loaded_size() == 0


def test_nothing_of_the_layers_is_moved_by_comfyui(dgls: Any, models: Any) -> None:
    import torch
    from sampling import swapping

    model = swapping("wan.safetensors", **NONE)
    names = [entry[-3] for entry in model._load_list()]
    assert names
    assert not [name for name in names if ".blocks." in name]
    model.partially_load(torch.device("cpu"), 1e32)
    arena = {p.untyped_storage().data_ptr() for p in model.model.diffusion_model.blocks.parameters()}
    assert len(arena) == 1  # views of one store: each weight is on the host once


# -- LoRA -------------------------------------------------------------------------------------------------------
def test_lora_gives_what_comfyui_gives_and_goes_again(dgls: Any, models: Any) -> None:
    import torch
    from sampling import sample, stock, swapping, with_lora

    reference = stock("wan.safetensors")
    plain, half, full = (
        sample(m)
        for m in (
            reference,
            with_lora(reference, "wan.safetensors", 0.5),
            with_lora(reference, "wan.safetensors", 1.0),
        )
    )
    assert not torch.equal(plain, half)
    model = swapping("wan.safetensors", **SOME)
    before = weights(model)
    one, two = with_lora(model, "wan.safetensors", 0.5), with_lora(model, "wan.safetensors", 1.0)
    for patched, expected in (
        (one, half),
        (model, plain),
        (two, full),
        (one, half),
        (one, half),
        (model, plain),
    ):
        assert torch.equal(sample(patched), expected)
    model.detach()
    assert same(weights(model), before)


def test_lora_is_baked_once_for_each_set_of_patches(
    dgls: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy import model_management
    from dgls.patcher import DGLSPatcher
    from sampling import sample, swapping, with_lora

    baked: list[str] = []
    patched = DGLSPatcher._patched
    monkeypatch.setattr(
        DGLSPatcher, "_patched", lambda self, key, *rest: (baked.append(key), patched(self, key, *rest))[1]
    )
    model = with_lora(swapping("wan.safetensors", **SOME), "wan.safetensors")
    sample(model)
    once = len(baked)
    assert once == len(set(baked)) > 0
    sample(model)
    sample(model.clone())
    model_management.unload_all_models()
    sample(model)
    assert len(baked) == once


def test_merging_starts_from_the_weights_as_they_came(dgls: Any, models: Any) -> None:
    import torch
    from sampling import sample, swapping, with_lora

    model = swapping("wan.safetensors", **SOME)
    before = weights(model)
    patched = with_lora(model, "wan.safetensors")
    sample(patched)
    for key, patches in model.get_key_patches("diffusion_model.").items():
        assert torch.equal(patches[0][0].cpu(), before[key]), key


def test_weight_functions_of_other_nodes_are_kept(dgls: Any, models: Any) -> None:
    import torch
    from sampling import sample, stock, swapping

    key = "diffusion_model.blocks.2.ffn.0.weight"
    results = []
    for model in (stock("wan.safetensors"), swapping("wan.safetensors", **NONE)):
        plain = sample(model)
        other = model.clone()
        other.add_weight_wrapper(key, lambda weight: weight * 1.5)
        changed = sample(other)
        assert not torch.equal(plain, changed)
        assert torch.equal(sample(model), plain)
        results.append((plain, changed))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weight_hooks(dgls: Any, models: Any) -> None:
    """ComfyUI's LoRA hooks write into parameters while sampling."""
    import comfy.hooks
    import comfy.utils
    import folder_paths
    import torch
    from sampling import conditioning, stock, swapping

    lora = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", "wan.safetensors"))

    def run(model: Any, hooks: Any) -> Any:
        import comfy.sample

        positive = conditioning(1)
        if hooks is not None:
            positive = [[positive[0][0], positive[0][1] | {"hooks": hooks}]]
        latent = torch.zeros(1, 16, 2, 8, 8)
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent, 3)
            return comfy.sample.sample(
                model,
                noise,
                2,
                2.0,
                "euler",
                "simple",
                positive,
                conditioning(2),
                latent,
                disable_pbar=True,
                seed=3,
            )

    def hooks() -> Any:
        group, _, _ = (
            comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0),
            None,
            None,
        )
        return group

    results = []
    for make in (
        lambda: stock("wan.safetensors"),
        lambda: swapping("wan.safetensors", gpu_layer_indices="0,3"),
    ):
        model = make()
        results.append((run(model, None), run(model, hooks()), run(model, None)))
    (plain, hooked, after), ours = results
    assert not torch.equal(plain, hooked)
    assert torch.equal(plain, after)
    assert all(torch.equal(a, b) for a, b in zip((plain, hooked, after), ours, strict=True))


# -- two models, clones -----------------------------------------------------------------------------------------
def test_fault_06_two_models_alive_and_foreign_lora_untouched(dgls: Any, models: Any) -> None:
    """Module globals allowed one model a process, and teardown cleared the patches of others."""
    import torch
    from sampling import sample, stock, swapping, with_lora

    names = ("wan.safetensors", "wan-other.safetensors")
    references = [stock(name) for name in names]
    expected = [sample(each) for each in references]
    lora = with_lora(references[0], "wan.safetensors")
    expected_lora = sample(lora)
    high, low = (swapping(name, **SOME) for name in names)
    for _ in range(2):
        assert torch.equal(sample(high), expected[0])
        assert torch.equal(sample(low), expected[1])
    assert high.dgls is not low.dgls
    high.detach()
    assert torch.equal(sample(lora), expected_lora)  # a model that is not ours
    assert torch.equal(sample(low), expected[1])
    assert torch.equal(sample(high), expected[0])
    assert lora.patches
    assert not references[1].patches


def test_clones_have_their_own_settings_and_one_state(dgls: Any, models: Any) -> None:
    import torch
    from sampling import sample, swapped, swapping

    model = swapping("wan.safetensors", **SOME)
    other = swapped(model, gpu_layer_indices="2")
    assert other.dgls is model.dgls
    assert other.dgls_settings != model.dgls_settings
    one = sample(model)
    assert [layer.index for layer in model.dgls.report().layers if layer.resident] == [0, 5]
    two = sample(other)
    assert [layer.index for layer in model.dgls.report().layers if layer.resident] == [2]
    assert torch.equal(one, two)
    assert type(model.clone()) is type(model)
    copy = model.clone()
    copy.model_options["transformer_options"]["mark"] = 1
    assert "mark" not in model.model_options["transformer_options"]


def test_a_model_from_another_loader(dgls: Any, models: Any) -> None:
    """Its own patcher goes on being used beside ours, in both orders."""
    import torch
    from sampling import sample, stock, swapped, with_lora

    base = stock("wan.safetensors")
    expected = sample(base)
    lora = with_lora(base, "wan.safetensors")
    expected_lora = sample(lora)
    ours = swapped(base, **SOME)
    ours_lora = swapped(lora, **SOME)
    assert type(base).__name__ == "ModelPatcher"
    for model, latent in (
        (ours, expected),
        (base, expected),
        (ours_lora, expected_lora),
        (lora, expected_lora),
        (ours, expected),
        (lora, expected_lora),
        (ours_lora, expected_lora),
        (base, expected),
    ):
        assert torch.equal(sample(model), latent)
    forwards = [block.__dict__.get("forward") for block in base.model.diffusion_model.blocks]
    assert not any(forwards)


def test_off_and_on_again(dgls: Any, models: Any) -> None:
    """Clones with and without swapping take turns on one model, with a LoRA in it."""
    import torch
    from sampling import sample, stock, swapped, swapping, with_lora

    expected = sample(with_lora(stock("wan.safetensors"), "wan.safetensors"))
    model = with_lora(swapping("wan.safetensors", **SOME), "wan.safetensors")
    off, unified = swapped(model, mode="off"), swapped(model, **NONE)
    for each in (model, off, unified, off, model):
        assert torch.equal(sample(each), expected)
    del model, off, unified, each


def test_object_patches_of_other_nodes_run_inside(dgls: Any, models: Any) -> None:
    import torch
    from sampling import sample, stock, swapping

    calls: list[int] = []
    results = []
    for model in (stock("wan.safetensors"), swapping("wan.safetensors", **NONE)):
        patched = model.clone()
        block = model.model.diffusion_model.blocks[1]
        forward = type(block).forward

        def halved(*args: Any, block: Any = block, forward: Any = forward, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(block, *args, **kwargs) * 0.5

        patched.add_object_patch("diffusion_model.blocks.1.forward", halved)
        results.append((sample(patched), sample(model), sample(patched)))
    assert calls
    assert not torch.equal(results[0][0], results[0][1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_leak_in_twelve_loads(dgls: Any, models: Any) -> None:
    """Without a garbage collection: ComfyUI calls a cycle a leak, and says so in the log."""
    from comfy import model_management
    from sampling import sample, swapping

    gc.collect()
    gc.disable()
    try:
        seen = []
        for i in range(12):
            model = swapping("wan.safetensors", **SOME)
            if i < 2:
                sample(model, steps=1)
            seen.append((weakref.ref(model.model), weakref.ref(model.dgls)))
            del model
            model_management.cleanup_models()
        alive = [i for i, (model, state) in enumerate(seen) if model() is not None or state() is not None]
    finally:
        gc.enable()
    assert alive == []


def test_hooks_are_gone_after_use(dgls: Any, models: Any) -> None:
    from sampling import sample, swapping

    model = swapping("wan.safetensors", **SOME)
    blocks = list(model.model.diffusion_model.blocks)
    before = weights(model)
    sample(model)
    model.detach()
    assert not any(block.__dict__.get("forward") for block in blocks)
    assert not any(block._forward_pre_hooks for block in blocks)
    assert same(weights(model), before)


# -- what goes wrong --------------------------------------------------------------------------------------------
def test_an_exception_in_the_middle_of_a_step(dgls: Any, models: Any) -> None:
    import torch
    from comfy.model_management import InterruptProcessingException
    from sampling import sample, stock, swapping

    expected = sample(stock("wan.safetensors"))
    model = swapping("wan.safetensors", **SOME)
    for kind in (RuntimeError, InterruptProcessingException, KeyboardInterrupt):
        failing = model.clone()

        def fail(_args: Any, _extra: Any, kind: Any = kind) -> Any:
            raise kind("injected")

        failing.set_model_patch_replace(fail, "dit", "double_block", 3)
        with pytest.raises(kind):
            sample(failing)
        assert torch.equal(sample(model), expected)


def test_a_failed_copy_is_an_error_and_no_wrong_picture(
    dgls: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from dgls.engine import CopyError
    from dgls.engine.scheduler import Scheduler
    from dgls.errors import NodeError
    from sampling import sample, stock, swapping

    expected = sample(stock("wan.safetensors"))
    model = swapping("wan.safetensors", **NONE)
    sample(model)
    enter = Scheduler.enter

    def broken(self: Any, index: int) -> Any:
        if index == 3:
            raise CopyError("the copy of blocks.3 failed: injected")
        return enter(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "enter", broken)
        with pytest.raises(NodeError, match=r"DGLS: the copy of blocks\.3 failed"):
            sample(model)
    assert torch.equal(sample(model), expected)


def test_a_budget_too_small_for_one_layer_says_how_much_is_needed(dgls: Any, models: Any) -> None:
    from dgls.errors import NodeError
    from sampling import sample, swapped, swapping

    model = swapping("wan.safetensors", vram_budget=0.001)
    with pytest.raises(NodeError, match=r"does not hold one layer: the largest \(blocks\.\d\) needs \d"):
        sample(model)
    assert model.loaded_size() == 0
    sample(swapped(model, vram_budget=1.0))


def test_indices_beyond_the_model_are_refused_when_they_are_used(dgls: Any, models: Any) -> None:
    from dgls.errors import IndicesError
    from sampling import swapping

    with pytest.raises(IndicesError, match="there is no layer 6, 12: the model has 6, numbered 0 to 5"):
        swapping("wan.safetensors", gpu_layer_indices="0,6,12")


def test_out_of_memory_shrinks_residency_or_raises(
    dgls: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from dgls.engine import OutOfDeviceMemoryError
    from dgls.engine.residents import Residents
    from sampling import sample, stock, swapping

    expected = sample(stock("wan.safetensors"))
    hold = Residents.hold
    held: list[int] = []

    def refused(self: Any, index: int) -> None:
        if len(self.indices()) >= 2:
            raise OutOfDeviceMemoryError("injected: the device refused memory", needed=1)
        held.append(index)
        hold(self, index)

    monkeypatch.setattr(Residents, "hold", refused)
    model = swapping("wan.safetensors", gpu_layer_indices="0-5", prefetch=1)
    assert torch.equal(sample(model), expected)
    found = model.dgls.report()
    assert sum(layer.resident for layer in found.layers) <= 2
    assert any("going on with" in note for note in found.notes)


def test_quantised_weights_that_cannot_be_packed_fall_back_by_layer(dgls: Any, models: Any) -> None:
    """Loaders of quantised files bring patchers and tensors of their own; layers with those go unpacked."""
    import torch
    from comfy.model_patcher import ModelPatcher
    from dgls import report
    from sampling import sample, stock, swapped

    class Opaque(torch.Tensor):
        """A tensor that says nothing of what it is made of."""

    class OtherPatcher(ModelPatcher):
        pass

    base = stock("wan.safetensors")
    expected = sample(base)
    base.detach()
    layer = base.model.diffusion_model.blocks[2].ffn[0]
    with torch.inference_mode(False):
        layer.weight = torch.nn.Parameter(
            torch.empty_like(layer.weight).copy_(layer.weight).as_subclass(Opaque), requires_grad=False
        )
    base.__class__ = OtherPatcher
    model = swapped(base, **NONE)
    assert isinstance(model, OtherPatcher)
    assert torch.equal(sample(model), expected)
    found = report.of(model)
    assert [each.index for each in found.layers if not each.packed] == [2]
    assert "layer 2 (blocks.2): " in report.text(found)


def test_pinning_refused_gives_the_same(dgls: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from dgls import state
    from dgls.engine.pins import PinBudget
    from sampling import sample, stock, swapping

    monkeypatch.setattr(state, "pins", lambda: PinBudget(0))
    expected = sample(stock("wan.safetensors"))
    assert torch.equal(sample(swapping("wan.safetensors", **NONE)), expected)


def test_a_model_that_never_calls_its_blocks_says_so(dgls: Any, models: Any) -> None:
    from dgls.errors import NotCalledError
    from dgls.patcher import _Watch
    from sampling import sample, swapping

    model = swapping("wan.safetensors", **NONE)
    sample(model)

    def executor() -> None:
        raise RuntimeError("Expected all tensors to be on the same device")

    with pytest.raises(NotCalledError, match="failed before any of its 6 layers"):
        _Watch(model.dgls)(executor)


def test_unified_moves_nothing_while_sampling(
    dgls: Any, models: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from dgls import hardware, report
    from sampling import sample, stock, swapping

    expected = sample(stock("wan.safetensors"))
    why = "NVIDIA GB10 shares the host's memory"
    monkeypatch.setattr(hardware, "resolve", lambda *_: ("unified", why))
    model = swapping("wan.safetensors")
    with caplog.at_level("INFO", logger="dgls"):
        assert torch.equal(sample(model), expected)
    assert why in caplog.text
    assert model.dgls.session is None
    found = report.of(model)
    assert (found.mode, found.copies, found.bytes_copied, found.why) == ("unified", 0, 0, why)
    assert all(layer.resident for layer in found.layers)
    storages = {p.data_ptr() for p in model.model.parameters()}
    sample(model)
    assert {p.data_ptr() for p in model.model.parameters()} == storages


def test_dtypes_and_cfg(dgls: Any, models: Any) -> None:
    """Other types of weights, two conditions in a pass, another size in the next run."""
    import comfy.sd
    import folder_paths
    import torch
    from dgls import loader
    from sampling import sample, swapped

    path = folder_paths.get_full_path("diffusion_models", "wan.safetensors")
    for name in ("fp8_e4m3fn", "bf16"):
        with torch.inference_mode():
            reference = comfy.sd.load_diffusion_model(path, model_options=loader.options(name))
            ours, _ = loader.load("wan.safetensors", name)
        model = swapped(ours, **SOME)
        for shape, cfg in (((1, 16, 2, 8, 8), 1.0), ((1, 16, 1, 12, 8), 3.0)):
            assert torch.equal(
                sample(model, shape=shape, cfg=cfg), sample(reference, shape=shape, cfg=cfg)
            ), name


def test_flux(dgls: Any, models: Any, version: tuple[int, ...]) -> None:
    import torch
    from sampling import IMAGE, sample, stock, swapping, with_lora

    if version < (0, 33):
        pytest.skip("0.3.75 knows no Flux but with 24 heads: test_server.py has it")
    reference, model = stock("flux.safetensors"), swapping("flux.safetensors", **SOME)
    assert torch.equal(sample(model, shape=IMAGE), sample(reference, shape=IMAGE))
    one, two = (with_lora(each, "flux.safetensors") for each in (model, reference))
    assert torch.equal(sample(one, shape=IMAGE), sample(two, shape=IMAGE))
    assert [layer.name for layer in model.dgls.layers.layers][1:3] == ["double_blocks.1", "single_blocks.0"]
