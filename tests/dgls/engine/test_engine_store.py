from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import dgls_engine
import pytest
import torch
from dgls_engine import LayerError, PinBudget
from dgls_engine.cpu import CpuDevice
from dgls_engine.pins import memory_limit
from enginekit import Faults, RecordingDevice, run, same, session, stack, state

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: not Linux")

# In a process of its own, since an allocator may keep what others have freed.
RSS = """
    import sys
    sys.path.insert(0, {engine_parent!r})
    import torch
    from torch import nn
    import engine

    def rss():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

    torch.set_num_threads(1)
    torch.ones(10, 10) @ torch.ones(10, 10)
    empty = rss()
    with torch.inference_mode({inference}):
        layers = nn.ModuleList([nn.Linear(2048, 2048, bias=False) for _ in range(12)])
    size = sum(p.numel() * 4 for p in layers.parameters())
    before = rss()
    session = engine.Session(layers, device="cpu", budget=2 * 17_000_000, slots=2, policy=engine.Indices(layers=()))
    packed = rss()
    session.attach()
    with torch.inference_mode():
        x = torch.ones(1, 2048)
        for layer in layers:
            x = layer(x)
    ran = rss()
    session.close()
    closed = rss()
    print(size, before - empty, packed - empty, ran - empty, closed - empty)
"""


@needs_proc
@pytest.mark.parametrize("inference", [False, True])
def test_every_weight_is_once_on_the_host(inference):
    script = textwrap.dedent(RSS).format(
        engine_parent=str(Path(dgls_engine.__file__).parents[1]), inference=inference
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, before, packed, ran, closed = map(int, done.stdout.split())
    slack = size // 8
    slots = 2 * 16 << 20
    assert abs(before - size) < slack
    assert packed < size + slack
    assert ran < size + slots + slack
    assert closed < size + slots + slack  # an allocator may keep what slots gave back


def test_memory_limit_of_cgroup_v2_is_the_smallest_on_the_way_up(tmp_path):
    groups, mounted, meminfo = tmp_path / "cgroup", tmp_path / "fs", tmp_path / "meminfo"
    groups.write_text("0::/slice/container\n")
    (mounted / "slice" / "container").mkdir(parents=True)
    (mounted / "slice" / "container" / "memory.max").write_text("max\n")
    (mounted / "slice" / "memory.max").write_text("4000000000\n")
    (mounted / "memory.max").write_text("8000000000\n")
    meminfo.write_text("MemFree: 1 kB\nMemTotal: 16000000 kB\n")
    assert memory_limit(groups=groups, mounted=mounted, meminfo=meminfo) == 4_000_000_000


def test_memory_limit_of_cgroup_v1_and_of_a_path_that_is_the_hosts(tmp_path):
    groups, mounted, meminfo = tmp_path / "cgroup", tmp_path / "fs", tmp_path / "meminfo"
    groups.write_text("11:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n")
    (mounted / "memory").mkdir(parents=True)
    limit = mounted / "memory" / "memory.limit_in_bytes"
    limit.write_text("2000000000\n")
    meminfo.write_text("MemTotal: 16000000 kB\n")
    assert memory_limit(groups=groups, mounted=mounted, meminfo=meminfo) == 2_000_000_000
    limit.write_text("9223372036854771712\n")  # no limit
    assert memory_limit(groups=groups, mounted=mounted, meminfo=meminfo) == 16_384_000_000


def test_memory_limit_where_nothing_is_told(tmp_path):
    nothing = tmp_path / "nothing"
    assert memory_limit(groups=nothing, mounted=nothing, meminfo=nothing) is None
    assert PinBudget.of_this_machine().total > 0


def test_pins_are_shared_and_given_back():
    pins = PinBudget(16 * 1024)
    one, other = stack(), stack()
    device = RecordingDevice()
    with session(one, device, pins=pins) as first, session(other, device, pins=pins) as second:
        run(one)
        run(other)
        assert first.pinned_bytes + second.pinned_bytes <= pins.total
        assert pins.used == first.pinned_bytes + second.pinned_bytes == device.pinned
    assert pins.used == device.pinned == 0


def test_only_layers_that_go_are_pinned():
    layers = stack()
    with session(layers, RecordingDevice(), residents=(0, 5)) as made:
        run(layers)
        pinned = [layer.pinned for layer in made.report().layers]
    assert pinned == [False, True, True, True, True, False]


@pytest.mark.parametrize("capacity", [0, 1024, 3000])
def test_pinning_refused_gives_the_same_output_and_says_so(capacity, monkeypatch):
    monkeypatch.setattr("dgls_engine.transfer._CHUNK", 300)
    layers = stack()
    expected = run(layers)
    with session(layers, RecordingDevice(late=True, faults=Faults(pin_capacity=capacity))) as made:
        for _ in range(3):
            assert torch.equal(run(layers), expected)
        assert any("not pinned" in note for note in made.report().notes)


def test_a_budget_of_nothing_pins_nothing():
    layers = stack()
    expected = run(layers)
    device = RecordingDevice(late=True)
    with session(layers, device, pins=PinBudget(0)) as made:
        assert torch.equal(run(layers), expected)
        assert made.pinned_bytes == device.pinned == 0


def test_after_close_the_layers_are_as_they_were():
    layers = stack()
    before, objects = state(layers), list(layers.parameters())
    with session(layers, residents=(1, 2)):
        run(layers)
    assert same(state(layers), before)
    assert all(one is other for one, other in zip(layers.parameters(), objects, strict=True))
    assert all("forward" not in layer.__dict__ for layer in layers)


# -- rewriting ------------------------------------------------------------------------------------
def twice(_layer, name, weight):
    return weight * 2 if name.endswith("weight") else None


@pytest.mark.parametrize("device", [CpuDevice, lambda: RecordingDevice(late=True)], ids=["cpu", "recording"])
@pytest.mark.parametrize("residents", [(), (0, 3), range(6)])
def test_rewritten_once_a_key_and_restored_bit_for_bit(device, residents):
    layers = stack()
    before, plain = state(layers), run(layers)
    lora = stack()
    with torch.no_grad():
        for layer in lora:
            layer.inner.weight.mul_(2)
            layer.weight.mul_(2)
    patched = run(lora)
    with session(layers, device(), residents=residents) as made:
        assert torch.equal(run(layers), plain)
        assert made.rewrite("a", twice) == 12
        assert made.rewrite("a", twice) == 0
        assert made.rewrite_key == "a"
        assert torch.equal(run(layers), patched)
        assert made.rewrite("b", twice) == 12  # from the originals, not from a
        assert torch.equal(run(layers), patched)
        assert made.restore() == 12
        assert made.rewrite_key is None
        assert torch.equal(run(layers), plain)
        assert made.restore() == 0
    assert same(state(layers), before)


def test_another_rewrite_leaves_out_what_the_first_had_changed():
    layers = stack()
    before = state(layers)
    with session(layers) as made:
        made.rewrite("a", twice)
        made.rewrite("b", lambda i, name, w: w + 1 if (i, name) == (2, "inner.bias") else None)
        after = state(layers)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"2.inner.bias"}


def test_a_rewrite_that_fails_leaves_the_originals():
    layers = stack()
    before, plain = state(layers), run(layers)

    def fails(i, name, weight):
        if i == 3:
            raise RuntimeError("no such LoRA")
        return weight * 3

    with session(layers, residents=(0,)) as made:
        run(layers)
        made.rewrite("a", twice)
        with pytest.raises(RuntimeError, match="no such LoRA"):
            made.rewrite("b", fails)
        assert made.rewrite_key is None
        assert torch.equal(run(layers), plain)
        with pytest.raises(
            LayerError, match=r"layer 0\.weight: the new weights have shape \(3,\), the old \(8,\)"
        ):
            made.rewrite("c", lambda i, name, w: torch.zeros(3) if name == "weight" else None)
    assert same(state(layers), before)


def test_a_rewrite_keeps_the_dtype():
    layers = stack()
    for layer in layers:
        layer.inner.to(torch.bfloat16)
    with session(layers) as made:
        made.rewrite("a", lambda i, name, w: w.float() * 2 if name == "inner.weight" else None)
        assert layers[0].inner.weight.dtype == torch.bfloat16
