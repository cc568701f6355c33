from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from dgls_engine import (
    Auto,
    BudgetError,
    CopyError,
    DglsError,
    Evenly,
    FirstLast,
    GradientError,
    Indices,
    LayerError,
    OutOfDeviceMemoryError,
    PlanError,
    Session,
    StateError,
    choose_mode,
)
from dgls_engine.cpu import CpuDevice
from dgls_engine.recording import RecordingDevice
from enginekit import Faults, assert_no_races, operations, run, same, session, stack, state, x
from torch import nn

POLICIES = [Auto(), Evenly(), FirstLast(first=1, last=2), Indices(layers=(4, 0))]


@pytest.mark.parametrize("device", [CpuDevice, lambda: RecordingDevice(late=True)], ids=["cpu", "recording"])
@pytest.mark.parametrize("slots", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_equal_to_the_bit(device, slots, policy):
    layers = stack((0, 40, 0, 80, 0, 0, 40))
    expected = run(layers)
    budget = 5000
    with session(layers, device(), budget=budget, slots=slots, policy=policy) as made:
        for _ in range(5):
            assert torch.equal(run(layers), expected)
            assert made.device_bytes <= budget
    assert torch.equal(run(layers), expected)


def test_changing_shapes_and_guidance_in_two_passes():
    layers = stack()
    small, large = x(1), x(9)
    expected = run(layers, small), run(layers, large)
    with session(layers, budget=4000, policy=Auto()):
        for _ in range(6):
            assert torch.equal(run(layers, small), expected[0])
            assert torch.equal(run(layers, large), expected[1])
        for _ in range(6):
            assert torch.equal(run(layers, large), expected[1])


def test_a_new_plan_when_the_shapes_change_the_costs():
    class Depends(RecordingDevice):
        batch = 1

        def computing(self, layer, reads):
            # The first layers are dear with small batches, the last with large ones.
            dear = layer < 4 if self.batch == 1 else layer >= 4
            self._compute_seconds = {layer: 0.004 if dear else 0.0001}
            return super().computing(layer, reads)

    layers = stack((0,) * 8)
    device = Depends(bytes_per_second=1024 / 0.004)  # four copies take as long as all computes
    with session(layers, device, budget=6 * 1024, policy=Auto(), slots=2) as made:
        for _ in range(4):
            run(layers, x(1))
        small = made.plan.residents
        device.batch = 5
        for _ in range(12):
            run(layers, x(5))
        assert made.plan.residents != small
    assert_no_races(device)


def test_copies_go_on_around_the_end_of_a_pass():
    layers = stack()
    device = RecordingDevice(compute_seconds=dict.fromkeys(range(6), 0.002), bytes_per_second=1024 / 0.001)
    with session(layers, device) as made:
        for _ in range(4):
            run(layers)
        assert made.report().misses == 0
        made.trace()
        run(layers)
        run(layers)
        assert made.report().metrics.stall == pytest.approx(0)  # not even at a pass's first layer


def test_an_unexpected_layer_is_one_miss_and_the_ring_goes_on_from_there():
    layers = stack((0,) * 8)
    with session(layers) as made:
        run(layers)
        before = made.report().misses
        run(layers[5:])
        run(layers)
        assert made.report().misses - before <= 2


def test_a_layer_run_twice_in_a_row_is_copied_once():
    layers = stack()
    expected = run([layer for layer in layers for _ in range(2)])
    device = RecordingDevice(late=True)
    with session(layers, device) as made:
        assert torch.equal(run([layer for layer in layers for _ in range(2)]), expected)
        before = made.report()  # the first pass has taught it
        for _ in range(3):
            assert torch.equal(run([layer for layer in layers for _ in range(2)]), expected)
        assert made.report().misses - before.misses <= 1
        assert made.report().copies - before.copies <= 3 * 6 + 2


def test_layers_inside_one_another():
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.own = nn.Linear(8, 8)
            self.call = [inner]  # not a submodule

        def forward(self, value):
            return self.own(self.call[0](value))

    inner = stack((0,))[0]
    layers = nn.ModuleList([Outer(inner), inner])
    expected = run(layers)
    with session(layers, slots=2):
        for _ in range(3):
            assert torch.equal(run(layers), expected)
    with session(layers, slots=1), pytest.raises(StateError, match="need a slot each"):
        run(layers)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", [0, 3, 5])
def test_an_exception_in_a_layer_leaves_all_clean(error, where):
    layers = stack()
    before, expected = state(layers), run(layers)
    device = RecordingDevice(late=True)
    with session(layers, device, residents=(0,)) as made:
        run(layers)
        inner = layers[where].inner.forward
        layers[where].inner.forward = lambda value: (_ for _ in ()).throw(error("stop"))
        with pytest.raises(error):
            run(layers)
        layers[where].inner.forward = inner
        assert all(slot.busy == 0 for slot in made._pool.slots)
        assert all(p.device.type == "cpu" for p in layers.parameters())
        for _ in range(2):
            assert torch.equal(run(layers), expected)
    assert_no_races(device)
    del layers[where].inner.forward
    assert same(state(layers), before)


def test_a_pass_broken_off_between_two_layers():
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True)
    with session(layers, device):
        for stop in (1, 4, 2, 6):
            run(layers[:stop])
            assert torch.equal(run(layers), expected)
    assert_no_races(device)


@pytest.mark.parametrize("copy", range(0, 14, 3))
def test_a_copy_that_fails_is_tried_again_or_raised_and_nothing_is_wrong(copy):
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True, faults=Faults(copies_fail={copy, copy + 1}))
    with session(layers, device, residents=(2,)):
        failed = 0
        for _ in range(5):
            try:
                assert torch.equal(run(layers), expected)
            except CopyError:
                failed += 1
        assert failed <= 2
        assert torch.equal(run(layers), expected)
    assert_no_races(device)


# -- memory ---------------------------------------------------------------------------------------
def test_no_allocation_once_it_runs():
    layers = stack((0, 40, 0, 40, 0, 0))
    device = RecordingDevice()
    with session(layers, device, residents=(0,)):
        for _ in range(2):
            run(layers)
        before = len(operations(device, "allocate"))
        for _ in range(5):
            run(layers)
        assert len(operations(device, "allocate")) == before == 3


def test_slots_stay_at_their_addresses():
    layers = stack()
    seen = {}
    with session(layers):
        for i, layer in enumerate(layers):
            layer.inner.register_forward_hook(
                lambda module, _args, _out, i=i: seen.setdefault(i, set()).add(module.weight.data_ptr())
            )
        for _ in range(4):
            run(layers)
    assert len(set.union(*seen.values())) <= 2


def test_shrink_grow_release():
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True)
    with session(layers, device, policy=Auto(), budget=6 * 1024) as made:
        assert made.device_bytes == 0
        run(layers)
        assert made.device_bytes == device.allocated == 6 * 1024
        freed = made.shrink(1500)
        assert 1500 <= freed <= 3 * 1024
        assert made.device_bytes == device.allocated == 6 * 1024 - freed
        assert torch.equal(run(layers), expected)
        made.set_budget(6 * 1024)
        assert made.device_bytes == device.allocated == 6 * 1024
        assert torch.equal(run(layers), expected)
        assert made.shrink(1 << 40) >= 4 * 1024  # everything but what one layer needs
        assert made.device_bytes >= made.minimum_budget
        assert torch.equal(run(layers), expected)
        assert made.release() > 0
        assert made.device_bytes == made.resident_bytes == device.allocated == 0
        assert made.shrink(1) == 0
        assert torch.equal(run(layers), expected)
    assert device.allocated == 0
    assert_no_races(device)


def test_a_budget_too_small_for_one_layer():
    layers = stack((0, 500, 0))
    with session(layers, budget=2000, names=["blocks.0", "blocks.1", "blocks.2"], policy=Auto()) as made:
        with pytest.raises(BudgetError, match=r"blocks\.1.*needs 2,816 bytes") as e:
            run(layers)
        assert e.value.needed == made.minimum_budget == 2816
        made.set_budget(e.value.needed)
        run(layers)


@pytest.mark.parametrize("capacity", [1024, 1500, 2048, 3000, 5000])
@pytest.mark.parametrize("policy", [Auto(), FirstLast(first=3, last=3)], ids=["auto", "by hand"])
def test_memory_refused_means_fewer_residents_never_a_layer_left_out(capacity, policy):
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True, faults=Faults(capacity=capacity))
    with session(layers, device, policy=policy, budget=1 << 20, slots=None) as made:
        for _ in range(4):
            assert torch.equal(run(layers), expected)
        assert made.device_bytes <= capacity
        assert any("going on with" in note for note in made.report().notes)
    assert_no_races(device)
    assert device.allocated == 0


def test_no_memory_at_all_raises_and_the_model_is_usable_afterwards():
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True, faults=Faults(capacity=1000))
    with session(layers, device, policy=Auto(), budget=1 << 20) as made:
        with pytest.raises(OutOfDeviceMemoryError, match="One slot for the largest layer") as e:
            run(layers)
        assert e.value.needed == made.minimum_budget
        assert made.device_bytes == device.allocated == 0
        device.faults.capacity = None
        assert torch.equal(run(layers), expected)
    assert torch.equal(run(layers), expected)


def test_out_of_memory_inside_a_layer_is_raised_and_makes_room():
    layers = stack()
    expected = run(layers)
    with session(layers, budget=6 * 1024, policy=Auto()) as made:
        run(layers)
        before = made.device_bytes
        inner = layers[2].inner.forward
        calls = []

        def fails(value):
            calls.append(1)
            raise torch.OutOfMemoryError("activations")

        layers[2].inner.forward = fails
        with pytest.raises(torch.OutOfMemoryError):
            run(layers)
        assert calls == [1]  # not tried again: it may have changed its input
        layers[2].inner.forward = inner
        assert made.device_bytes < before
        assert torch.equal(run(layers), expected)


def test_fifty_sessions_leave_nothing_behind():
    layers = stack()
    expected, before = run(layers), state(layers)
    device = RecordingDevice()
    dead = []

    def once():
        with session(layers, device, residents=(1,)) as made:
            assert torch.equal(run(layers), expected)
            dead.append(weakref.ref(made))

    def tensors():
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    once()
    device.log.clear()
    count = tensors()
    for _ in range(50):
        once()
        device.log.clear()
    assert tensors() <= count
    assert not any(ref() for ref in dead)
    assert device.allocated == device.pinned == 0
    assert same(state(layers), before)
    assert all("forward" not in layer.__dict__ for layer in layers)


def test_two_sessions_alive_at_once():
    high, low = stack(seed=1), stack((40,) * 6, seed=2)
    expected = run(high), run(low)
    device = RecordingDevice(late=True)
    with session(high, device, residents=(0,)) as one, session(low, device) as other:
        for _ in range(3):
            assert torch.equal(run(high), expected[0])
            assert torch.equal(run(low), expected[1])
        one.rewrite("lora", lambda i, name, w: w + 1 if name == "inner.weight" else None)
        assert not torch.equal(run(high), expected[0])
        assert torch.equal(run(low), expected[1])
        one.close()
        assert torch.equal(run(low), expected[1])
        assert other.report().misses == 0
    assert_no_races(device)


# -- hooks ----------------------------------------------------------------------------------------
def test_hooks_are_restored_as_they_were():
    layers = stack()
    mine = lambda value: value  # noqa: E731
    layers[2].forward = mine
    made = session(layers)
    assert layers[2].forward is not mine
    made.detach()
    assert layers[2].__dict__["forward"] is mine
    assert "forward" not in layers[0].__dict__
    made.attach()
    with pytest.raises(StateError):
        made.attach()
    made.close()
    made.close()
    assert layers[2].__dict__["forward"] is mine


def test_wrapped_by_hand_as_comfyui_does():
    layers = stack()
    expected = run(layers)
    made = session(layers, attach=False, residents=(0,))
    forwards = [made.wrap(i) for i in range(6)]
    value = x()
    with torch.inference_mode():
        for forward in forwards:
            value = forward(value)
    assert torch.equal(value, expected)
    made.close()
    with torch.inference_mode():
        assert torch.equal(forwards[0](x()), run(layers[:1]))  # passes through


def test_inference_mode_first_and_then_not_and_the_other_way():
    layers = stack()
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x())
    for modes in ((True, False, True), (False, True, False)):
        with session(layers, budget=4000, policy=Auto()) as made:
            for inference in modes:
                with torch.inference_mode(inference), torch.no_grad():
                    assert torch.equal(nn.Sequential(*layers)(x()), expected)
                made.release()


def test_gradients_are_refused():
    layers = stack()
    with session(layers):
        value = x().requires_grad_()
        with pytest.raises(GradientError, match=r"torch\.no_grad"):
            nn.Sequential(*layers)(value)
        assert not nn.Sequential(*layers)(x()).requires_grad


# -- modes ----------------------------------------------------------------------------------------
def test_unified_copies_nothing_and_says_why():
    layers = stack()
    expected = run(layers)
    device = RecordingDevice()
    with session(layers, device, mode="unified", budget=0) as made:
        for _ in range(3):
            assert torch.equal(run(layers), expected)
        report = made.report()
        assert (report.copies, report.bytes_copied, device.copies, report.slots) == (0, 0, 0, ())
        assert report.mode == "unified"
        assert report.why
        assert all(layer.resident for layer in report.layers)
        assert made.device_bytes > 0
        assert made.host_bytes == 0
        made.rewrite("a", lambda i, name, w: w * 2 if name == "inner.weight" else None)
        assert not torch.equal(run(layers), expected)
        made.restore()
        assert torch.equal(run(layers), expected)
        made.release()
        assert made.device_bytes == 0
        assert torch.equal(run(layers), expected)
    assert torch.equal(run(layers), expected)


def test_the_mode_follows_from_the_device(monkeypatch):
    assert choose_mode(torch.device("cpu"))[0] == "cpu"

    class Gpu:
        name = "NVIDIA GB10"
        is_integrated = 1

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Gpu)
    mode, why = choose_mode(torch.device("cuda", 0))
    assert mode == "unified"
    assert why.startswith("NVIDIA GB10 shares its memory with the CPU")
    Gpu.is_integrated = 0
    assert choose_mode(torch.device("cuda", 0))[0] == "engine"
    with pytest.raises(DglsError, match="mps"):
        choose_mode(torch.device("mps"))


# -- the rest -------------------------------------------------------------------------------------
def test_bad_layers():
    layers = stack()
    for wrong, message in (
        ([], "no layers to swap"),
        ([layers[0], layers[0]], "twice"),
        (["transformer", layers[0]], r"not modules: layer 0 \(str\)"),
    ):
        with pytest.raises(LayerError, match=message):
            Session(wrong, device="cpu", budget=1)
    with pytest.raises(LayerError, match="1 names for 6 layers"):
        Session(layers, device="cpu", budget=1, names=["a"])
    with pytest.raises(PlanError, match="no layer 6"):
        Session(layers, device="cpu", budget=1, policy=Indices(layers=(6,)))
    with pytest.raises(DglsError, match="slots: 0"):
        Session(layers, device="cpu", budget=1, slots=0)


def test_the_report_is_json():
    layers = stack()
    with session(layers, residents=(0,), names=[f"blocks.{i}" for i in range(6)]) as made:
        run(layers)
        run(layers)
        data = json.loads(made.report().to_json())
    assert data["mode"] == "engine"
    assert data["order"] == list(range(6))
    assert data["layers"][0]["name"] == "blocks.0"
    assert [layer["resident"] for layer in data["layers"]] == [True, *[False] * 5]
    assert {span["kind"] for span in data["timeline"]} >= {"copy", "compute"}
    assert data["passes"] == 2


def test_the_report_before_anything_ran():
    with session(stack()) as made:
        report = made.report()
    assert report.metrics is None
    assert report.timeline == ()
    assert json.loads(report.to_json())


def test_residents_are_compiled_and_what_cannot_be_is_said(monkeypatch):
    layers = stack()
    expected = run(layers)
    compiled = []

    def fake(forward):
        compiled.append(forward)
        if len(compiled) == 2:

            def fails(*_args):
                raise torch._dynamo.exc.TorchDynamoException("a graph too strange")

            return fails
        return forward

    monkeypatch.setattr(torch, "compile", fake)
    with session(layers, residents=(1, 4), compile_residents=True) as made:
        for _ in range(3):
            assert torch.equal(run(layers), expected)
        assert len(compiled) == 2
        assert any("not compiled: a graph too strange" in note for note in made.report().notes)
