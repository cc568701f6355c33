"""The order of all operations, checked by vector clocks: that nothing races, and that every wait is needed."""

from __future__ import annotations

from pathlib import Path

import dgls_engine
import pytest
import torch
from dgls_engine import Indices, PinBudget
from dgls_engine.device import Buffer, Stream, Wait
from dgls_engine.hazards import races
from dgls_engine.recording import Faults, Operation, RecordingDevice
from enginekit import assert_no_races, run, session, stack, x
from hypothesis import given, settings
from hypothesis import strategies as st


def everything(device: RecordingDevice, *, pins: PinBudget | None = None) -> list[bool]:
    """A life of a session in which every wait there is has something to wait for; whether each result was right."""
    layers = stack((0, 40, 0, 40, 0, 0))
    plain = run(layers)
    doubled = stack((0, 40, 0, 40, 0, 0))
    with torch.no_grad():
        for layer in doubled:
            layer.inner.weight.mul_(2)
    changed = run(doubled)
    right = []

    made = session(layers, device, residents=(1, 4), slots=2, pins=pins)
    made.prepare()
    made.set_policy(Indices(layers=(0,)))  # residents given up before they were ever used
    right += [torch.equal(run(layers), plain) for _ in range(3)]
    made.set_policy(Indices(layers=(1, 4)))
    right.append(torch.equal(run(layers), plain))
    made.rewrite("doubled", lambda _i, name, w: w * 2 if name == "inner.weight" else None)
    right += [torch.equal(run(layers), changed) for _ in range(2)]
    made.restore()
    right += [torch.equal(run(layers), plain) for _ in range(2)]
    made.release()  # with prefetches for the next pass under way
    right.append(torch.equal(run(layers), plain))
    made.close()
    right.append(torch.equal(run(layers), plain))
    return right


def some_pinned() -> PinBudget:
    return PinBudget(3 * 1400)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("pinned", ["all", "some", "none"])
def test_nothing_races(late, pinned, monkeypatch):
    monkeypatch.setattr("dgls_engine.transfer._CHUNK", 256)
    device = RecordingDevice(late=late, faults=Faults(pin_capacity=0) if pinned == "none" else None)
    right = everything(device, pins=some_pinned() if pinned == "some" else None)
    assert all(right)
    assert_no_races(device)
    assert device.allocated == device.pinned == 0


@pytest.mark.parametrize("wait", Wait, ids=lambda wait: wait.name)
def test_mutation_every_wait_taken_away_is_caught(wait, monkeypatch):
    monkeypatch.setattr("dgls_engine.transfer._CHUNK", 256)
    found, used = [], 0
    for pins in (lambda: None, some_pinned):
        whole = RecordingDevice(late=True)
        everything(whole, pins=pins())
        used += sum(operation.why is wait for operation in whole.log)
        assert races(whole.log) == []
        device = RecordingDevice(late=True, drop=wait)
        everything(device, pins=pins())
        found += races(device.log)
    assert used, f"no run ever came to {wait.name}: nothing is proven of it"
    assert found, f"without {wait.name} the checker saw nothing wrong"


@pytest.mark.parametrize("wait", [Wait.SLOT_READY, Wait.RESIDENT_READY], ids=lambda wait: wait.name)
def test_mutation_a_late_copy_that_nobody_waits_for_gives_a_wrong_result(wait):
    """The checker is not believed on its word alone."""
    assert not all(everything(RecordingDevice(late=True, drop=wait)))


def test_every_wait_of_the_engine_has_a_name():
    # A wait that is not one of `Wait` could not be taken away by the tests above.
    for path in Path(dgls_engine.__file__).parent.glob("*.py"):
        if path.name in ("cuda.py", "recording.py", "device.py", "cpu.py"):
            continue
        for line in path.read_text().splitlines():
            for call in (".wait(", ".synchronize(", "wait_event(", "wait_stream("):
                if call in line:
                    assert "Wait." in line or "why" in line, f"{path.name}: {line.strip()}"


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 40, 100]), min_size=1, max_size=10),
    slots=st.integers(1, 4),
    late=st.booleans(),
    pinned=st.sampled_from([0, 2500, 1 << 30]),
    data=st.data(),
)
def test_nothing_races_whatever_happens(sizes, slots, late, pinned, data):
    """Random layers, slots and residents; passes with layers left out, repeated, or broken off; plans that change."""
    layers = stack(sizes)
    count = len(sizes)
    device = RecordingDevice(late=late)
    indices = st.sets(st.integers(0, count - 1)).map(tuple)
    made = session(layers, device, residents=data.draw(indices), slots=slots, pins=PinBudget(pinned))
    made._transfer._chunk = 256
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(
            st.sampled_from(["pass", "pass", "part", "skip", "shuffle", "shrink", "release", "policy"])
        ):
            case "pass":
                passed = range(count)
            case "part":  # and then the next one, as after an interrupt
                passed = range(data.draw(st.integers(0, count)))
            case "skip":
                passed = [i for i in range(count) if data.draw(st.booleans())]
            case "shuffle":
                passed = data.draw(st.permutations(range(count)))
            case "shrink":
                passed = ()
                made.shrink(data.draw(st.integers(0, 3000)))
            case "release":
                passed = ()
                made.release()
            case _:
                passed = ()
                made.set_policy(Indices(layers=data.draw(indices)))
        chosen = [layers[i] for i in passed]
        value = run(chosen)
        made.detach()
        expected = run([stack(sizes)[i] for i in passed])
        made.attach()
        assert torch.equal(value, expected)
    made.close()
    assert_no_races(device)
    assert device.allocated == device.pinned == 0


# -- the checker itself ---------------------------------------------------------------------------
def op(kind, stream, *, reads=(), writes=(), event=None):
    return Operation(kind=kind, stream=stream, reads=reads, writes=writes, event=event)


def test_the_checker_knows_what_events_order_and_what_they_do_not():
    from dgls_engine.recording import Mark

    slot, host, event = Buffer(torch.empty(1), "slot"), Buffer(torch.empty(1), "host"), Mark()
    copy = op("copy", Stream.COPY, reads=(host,), writes=(slot,))
    compute = op("compute", Stream.COMPUTE, reads=(slot,))
    record, wait = op("record", Stream.COPY, event=event), op("wait", Stream.COMPUTE, event=event)
    assert not races([copy, record, wait, compute])
    assert races([copy, record, compute])
    assert races([record, copy, wait, compute])  # recorded too early
    assert races([copy, wait, record, compute])  # waited for too early: it had not been recorded
    assert races([copy, record, wait, compute, copy])  # the next copy overtakes the compute
    assert not races([compute, compute])  # two reads
    write = op("host write", Stream.HOST, writes=(host,))
    assert not races([write, copy])  # what the host enqueues comes after what it did
    assert races([copy, write])
    assert races([copy, record, wait, write])  # another stream's wait does not hold up the host
    assert not races([copy, record, op("wait", Stream.HOST, event=event), write])


def test_the_checker_follows_order_through_a_third_stream():
    from dgls_engine.recording import Mark

    buffer, one, two = Buffer(torch.empty(1), "buffer"), Mark(), Mark()
    log = [
        op("copy", Stream.COPY, writes=(buffer,)),
        op("record", Stream.COPY, event=one),
        op("wait", Stream.HOST, event=one),
        op("compute", Stream.COMPUTE, reads=(buffer,)),
        op("record", Stream.COMPUTE, event=two),
        op("wait", Stream.COPY, event=two),
        op("copy", Stream.COPY, writes=(buffer,)),
    ]
    assert not races(log)
    assert x(1).shape == (1, 8)
