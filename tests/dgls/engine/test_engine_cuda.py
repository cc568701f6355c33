"""The CUDA device: on a GPU where there is one, and everywhere against a stand-in that checks how it calls torch."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace

import pytest
import torch
from dgls_engine import Auto, CopyError, Indices, OutOfDeviceMemoryError, Session
from dgls_engine.cuda import CudaDevice
from dgls_engine.device import Buffer, Stream, Wait
from enginekit import run, stack, x

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch sees no CUDA device")
CYCLES = 3_000_000


class FakeStream:
    def __init__(self, device=None):
        self.did = []

    def wait_event(self, event):
        self.did.append(("wait", event))


class FakeEvent:
    def __init__(self, enable_timing=False):
        self.timed, self.recorded, self.waited = enable_timing, [], 0

    def record(self, stream):
        self.recorded.append(stream)
        self.at = len(self.recorded)

    def synchronize(self):
        self.waited += 1

    def query(self):
        return True

    def elapsed_time(self, other):
        return 5.0


class FakeRuntime:
    def __init__(self):
        self.refuse, self.registered = False, {}

    def cudaHostRegister(self, address, nbytes, flags):  # noqa: N802
        if self.refuse:
            return 2
        self.registered[address] = nbytes
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]
        return 0


@pytest.fixture
def fake(monkeypatch):
    """A CudaDevice whose memory is the CPU's, and its caller's stream."""
    caller, runtime, entered = FakeStream(), FakeRuntime(), []

    @contextlib.contextmanager
    def stream(which):
        entered.append(which)
        yield

    monkeypatch.setattr("dgls_engine.cuda._cuda.Stream", FakeStream)
    monkeypatch.setattr("dgls_engine.cuda._cuda.Event", FakeEvent)
    monkeypatch.setattr("dgls_engine.cuda._cuda.cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Fake")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: caller)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    properties = SimpleNamespace(name="Fake", is_integrated=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1_000_000, 2_000_000))
    monkeypatch.setattr(CudaDevice, "_empty", lambda _self, n: torch.empty(n, dtype=torch.uint8))
    monkeypatch.setattr(CudaDevice, "_forget_error", lambda self: setattr(self, "forgot", True))
    device = CudaDevice(torch.device("cuda", 0))
    device.caller, device.runtime, device.entered, device.forgot = caller, runtime, entered, False
    return device


def test_waits_and_records_go_to_the_right_stream(fake):
    event = fake.event()
    fake.record(event, Stream.COPY)
    fake.record(event, Stream.COMPUTE)
    assert event.recorded == [fake.copy_stream, fake.caller]
    fake.wait(Stream.COMPUTE, event, Wait.SLOT_READY)
    fake.wait(Stream.COPY, event, Wait.SLOT_FREE)
    fake.wait(Stream.HOST, event, Wait.REWRITE)
    assert fake.caller.did == fake.copy_stream.did == [("wait", event)]
    assert event.waited == 1
    assert fake.event(timed=True).timed
    assert not event.timed
    assert fake.seconds(event, event) == pytest.approx(0.005)


def test_copies_run_on_the_copy_stream_without_waiting(fake, monkeypatch):
    target, source = fake.allocate(8, "to"), Buffer(torch.arange(8, dtype=torch.uint8), "from")
    seen = []
    real = torch.Tensor.copy_

    def copy_(self, other, non_blocking=False):
        seen.append(non_blocking)
        return real(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    fake.copy(target, source, 2, 4, 3)
    assert target.flat[2:5].tolist() == [4, 5, 6]
    assert fake.entered == [fake.copy_stream]
    assert seen == [True]

    def fails(*_args, **_options):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(torch.Tensor, "copy_", fails)
    with pytest.raises(CopyError, match="copying from to to failed: CUDA error"):
        fake.copy(target, source, 0, 0, 8)


def test_memory_refused_is_tried_once_more_and_then_told(fake, monkeypatch):
    calls = []

    def refuse(_self, n):
        calls.append(n)
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(CudaDevice, "_empty", refuse)
    with pytest.raises(
        OutOfDeviceMemoryError, match=r"Fake has no 5\.0 MB left for slot 1 \(1\.0 MB are free\)"
    ) as e:
        fake.allocate(5_000_000, "slot 1")
    assert calls == [5_000_000] * 2
    assert e.value.needed == 5_000_000


def test_pinning_registers_the_range_and_a_refusal_is_no_error_of_a_later_call(fake):
    buffer = Buffer(torch.empty(100, dtype=torch.uint8), "layer")
    assert fake.pin(buffer)
    assert fake.runtime.registered == {buffer.flat.data_ptr(): 100}
    fake.unpin(buffer)
    assert fake.runtime.registered == {}
    fake.runtime.refuse = True
    assert not fake.pin(buffer)
    assert fake.forgot


@pytest.mark.parametrize("policy", [Auto(), Indices(layers=(1, 3))], ids=["auto", "by hand"])
def test_a_whole_session_on_it(fake, monkeypatch, policy):
    layers = stack()
    expected = run(layers)
    with Session(layers, device=fake, budget=5000, policy=policy, mode="engine") as made:
        made.attach()
        for _ in range(4):
            assert torch.equal(run(layers), expected)
        assert made.pinned_bytes
        assert fake.runtime.registered
    assert not fake.runtime.registered
    assert torch.equal(run(layers), expected)


# -- on a GPU -------------------------------------------------------------------------------------
class LateCopies(CudaDevice):
    def copy(self, *args):
        with torch.cuda.stream(self.copy_stream):
            torch.cuda._sleep(CYCLES)
        super().copy(*args)


class LateComputes(CudaDevice):
    def computing(self, layer, reads):
        torch.cuda._sleep(CYCLES)
        return super().computing(layer, reads)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", [CudaDevice, LateCopies, LateComputes])
def test_gpu_equal_to_the_bit_over_random_plans(kind):
    layers = stack((0, 4000, 0, 90000, 0, 0, 4000, 0))
    value = x().cuda()
    resident = stack((0, 4000, 0, 90000, 0, 0, 4000, 0)).cuda()
    expected = run(resident, value)
    dice = random.Random(0)
    for _ in range(20):
        policy = Indices(layers=tuple(dice.sample(range(8), dice.randrange(8))))
        device = kind(torch.device("cuda"))
        with Session(
            layers,
            device=device,
            budget=1 << 30,
            policy=policy,
            slots=dice.choice((1, 2, 3, 4)),
            mode="engine",
        ) as made:
            made.attach()
            for _ in range(3):
                assert torch.equal(run(layers, value), expected)
            made.rewrite("twice", lambda i, name, w: w * 2 if name == "inner.weight" else None)
            run(layers, value)
            made.restore()
            assert torch.equal(run(layers, value), expected)


@pytest.mark.gpu
@needs_gpu
def test_gpu_memory_comes_back_and_nothing_is_allocated_while_it_runs():
    layers = stack((1000,) * 8)
    value = x().cuda()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Session(layers, device="cuda", budget=1 << 20, policy=Indices(layers=(0,)), mode="engine") as made:
        made.attach()
        for _ in range(4):
            run(layers, value)
        segments = torch.cuda.memory_stats()["segment.all.allocated"]
        for _ in range(4):
            run(layers, value)
        assert torch.cuda.memory_stats()["segment.all.allocated"] == segments
        assert made.report().metrics.bytes_per_second
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
