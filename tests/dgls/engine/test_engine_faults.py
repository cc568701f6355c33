"""The faults of the original node, each with its number in the design's list; 6, 7 and 9 are the nodes' own."""

from __future__ import annotations

import itertools

import pytest
import torch
from dgls_engine import FirstLast, OutOfDeviceMemoryError
from dgls_engine.device import Stream
from enginekit import Faults, RecordingDevice, assert_no_races, operations, run, session, stack, x
from torch import nn


def test_fault_01_every_source_is_pinned_so_that_copies_are_asynchronous():
    layers = stack()
    device = RecordingDevice()
    with session(layers, device, residents=(0,)) as made:
        made.prepare()
        begin = len(device.log)
        run(layers)
        run(layers)
        going = [layer for layer in made.report().layers if not layer.resident]
        assert all(layer.pinned for layer in going)
        assert device.pinned >= sum(layer.bytes for layer in going)
        # And nothing on the way makes the host wait.
        assert not [o for o in device.log[begin:] if o.kind == "wait" and o.stream is Stream.HOST and o.why]


def test_fault_02_a_hit_asks_for_the_next_copy_too():
    layers = stack((0,) * 8)
    device = RecordingDevice()
    with session(layers, device) as made:
        run(layers)
        begin = len(device.log)
        for _ in range(3):
            run(layers)
        report = made.report()
        assert report.misses == 0
        # After each compute its successor is sent on its way: computes and copies alternate one by one.
        kinds = [o.kind for o in device.log[begin:] if o.kind in ("compute", "copy")]
        assert kinds == ["compute", "copy"] * 24


def test_fault_03_events_do_not_depend_on_logging():
    logs = []
    for log in (None, print):
        device = RecordingDevice()
        layers = stack()
        with session(layers, device, log=log):
            for _ in range(3):
                run(layers)
        assert_no_races(device)
        logs.append([(o.kind, o.stream, o.why) for o in device.log])
    assert logs[0] == logs[1]
    assert any(kind == "record" for kind, _, _ in logs[0])


def test_fault_04_buffers_are_allocated_once_and_freed_only_after_their_copies():
    layers = stack()
    device = RecordingDevice(late=True)
    with session(layers, device) as made:
        for _ in range(10):
            run(layers)
        assert len(operations(device, "allocate")) == 2
        assert not operations(device, "free")
        made.release()
    assert len(operations(device, "free")) == 2
    assert_no_races(device)


def test_fault_05_out_of_memory_never_skips_a_layer():
    layers = stack()
    ran = []
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_args, i=i: ran.append(i))
    expected = run(layers)
    for capacity in (0, 500, 1024, 2048, 2500, 4096, 1 << 20):
        device = RecordingDevice(late=True, faults=Faults(capacity=capacity))
        with session(layers, device, policy=FirstLast(first=2, last=2), budget=1 << 20):
            ran.clear()
            try:
                assert torch.equal(run(layers), expected)
            except OutOfDeviceMemoryError:
                assert capacity < 1024
            else:
                assert ran == list(range(6))


def test_fault_08_submodules_are_packed_too():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.mlp = nn.Sequential(
                nn.Linear(8, 16), nn.ModuleDict({"act": nn.GELU()})["act"], nn.Linear(16, 8)
            )
            self.bare = nn.Parameter(torch.randn(8))
            self.register_buffer("hidden", torch.randn(8), persistent=False)

        def forward(self, value):
            return value + self.mlp(self.norm(value)) * self.bare + self.hidden

    layers = nn.ModuleList([Deep() for _ in range(4)])
    expected = run(layers)
    device = RecordingDevice(late=True)
    with session(layers, device) as made:
        assert [e.name for e in made._store.layers[0].entries] == [
            "bare",
            "hidden",
            "norm.weight",
            "norm.bias",
            "mlp.0.weight",
            "mlp.0.bias",
            "mlp.2.weight",
            "mlp.2.bias",
        ]
        assert torch.equal(run(layers), expected)
        # One copy a layer, whatever is in it.
        assert made.report().copies == made.report().bytes_copied // made.layer_bytes[0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.bfloat16])
def test_fault_10_small_types_travel_as_they_are(dtype):
    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.randn(64, 8).abs().to(dtype))

        def forward(self, value):
            return value + self.weight.float().sum()

    layers = nn.ModuleList([Stored() for _ in range(4)])
    expected = run(layers)
    size = torch.empty((), dtype=dtype).element_size()
    with session(layers) as made:
        for _ in range(2):
            assert torch.equal(run(layers), expected)
        assert made.layer_bytes == (512 * size,) * 4
        assert layers[0].weight.dtype == dtype


@pytest.mark.parametrize("residents", [(), (0, 2)])
def test_fault_11_no_inplace_update_of_inference_tensors(residents):
    with torch.inference_mode():
        layers = stack()
        expected = run(layers)
        made = session(layers, residents=residents)  # everything is made inside, as in a ComfyUI node
        assert torch.equal(run(layers), expected)
    # And used, changed and given back outside.
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*layers)(x()), expected)
    made.rewrite("lora", lambda i, name, w: w * 2 if name == "inner.weight" else None)
    made.restore()
    made.release()
    with torch.inference_mode():
        assert torch.equal(run(layers), expected)
    made.close()
    assert not any(p.is_inference() for p in layers.parameters())


def test_fault_12_no_loop_waits_for_something_that_may_never_come():
    # The host waits for nothing in a loop: whatever the layers' order, a pass ends after a bounded number of calls.
    layers = stack((0,) * 5)
    device = RecordingDevice(faults=Faults(copies_fail=set(range(2, 400, 3))))
    made = session(layers, device, slots=2)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        begin = len(device.log)
        try:
            run([layers[i] for i in order])
        except Exception as e:  # noqa: BLE001
            assert "injected" in str(e)
        assert len(device.log) - begin < 200
    device.faults.copies_fail.clear()
    made.close()
