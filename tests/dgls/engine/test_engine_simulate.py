from __future__ import annotations

import dgls_engine
import pytest
from dgls_engine.costs import Bus, LayerCost
from dgls_engine.recording import RecordingDevice
from dgls_engine.simulate import floor, simulate, synchronous, windows
from enginekit import run, session, stack
from hypothesis import given, settings
from hypothesis import strategies as st

MB = 1_000_000
BUS = Bus(bytes_per_second=1e9, latency=0.0)  # 1 MB takes 1 ms


def same_layers(count, compute, copy=0.001):
    return [LayerCost(nbytes=int(copy * 1e9), compute=compute)] * count


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("compute", [0.0001, 0.0009, 0.001, 0.0011, 0.01])
def test_closed_form_of_equal_layers(slots, compute):
    # With two slots or more each layer takes the longer of its compute and its copy.
    costs = same_layers(12, compute)
    found = simulate(costs, (), (MB,) * slots, BUS)
    assert found.seconds == pytest.approx(12 * max(compute, 0.001))
    assert found.bytes_copied == 12 * MB
    assert sum(found.stalls.values()) == pytest.approx(12 * max(0, 0.001 - compute))


def test_closed_form_of_one_slot():
    # Nothing overlaps: the slot is free only when its layer has run.
    assert simulate(same_layers(5, 0.002), (), (MB,), BUS).seconds == pytest.approx(5 * (0.002 + 0.001))


def test_closed_form_of_every_other_layer_resident():
    # The copy of one has two computes to hide behind.
    costs = same_layers(10, 0.0006)
    even = range(0, 10, 2)
    assert simulate(costs, even, (MB, MB), BUS).seconds == pytest.approx(10 * 0.0006)
    assert simulate(same_layers(10, 0.0003), even, (MB, MB), BUS).seconds == pytest.approx(5 * 0.001)


def test_closed_form_of_all_residents_first():
    # 2 residents, then 3 that go: two copies are ahead when the pass begins, and those of the next pass run
    # during the residents' computes; per pass the bus is busy 3 ms of at least 3 ms.
    costs = same_layers(5, 0.0005)
    assert simulate(costs, (0, 1), (MB, MB), BUS).seconds == pytest.approx(0.003)


def test_as_many_slots_as_layers_copy_nothing():
    found = simulate(same_layers(6, 0.001), (0, 1, 2, 3), (MB, MB), BUS)
    assert (found.bytes_copied, found.stalls) == (0, {})


def test_layers_left_out_of_the_order_cost_nothing():
    assert simulate(same_layers(6, 0.001), (), (MB, MB), BUS, order=(0, 2, 4)).seconds == pytest.approx(0.003)


def test_a_layer_that_is_not_streamed_is_waited_for():
    costs = [LayerCost(nbytes=MB, compute=0.001, streamed=False), *same_layers(3, 0.001)]
    assert simulate(costs, (1, 2, 3), (), BUS).seconds == pytest.approx(0.005)


def test_a_slot_too_small_is_refused():
    with pytest.raises(ValueError, match="large enough"):
        simulate(same_layers(4, 0.001), (), (MB // 2, MB // 2), BUS)


def test_windows():
    sizes = [9, 9, 1, 1, 1, 1]
    assert windows(range(6), sizes, 2) == (9, 9)
    assert windows((0, 2, 3, 4), sizes, 2) == (9, 1)  # the large one is never beside another
    assert windows((2, 3, 4), sizes, 2) == (1, 1)
    assert windows((0, 2), sizes, 4) == (9, 1)
    assert windows((), sizes, 2) == ()


COSTS = st.lists(
    st.builds(
        LayerCost,
        nbytes=st.sampled_from([256_000, 512_000, MB]),
        compute=st.sampled_from([0.0, 0.0001, 0.0005, 0.001, 0.002]),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=200, deadline=None)
@given(costs=COSTS, slots=st.integers(1, 4), data=st.data())
def test_never_faster_than_physics_nor_slower_than_waiting(costs, slots, data):
    residents = data.draw(st.sets(st.sampled_from(range(len(costs)))))
    ring = [i for i in range(len(costs)) if i not in residents]
    found = simulate(costs, residents, windows(ring, [c.nbytes for c in costs], slots), BUS)
    slack = 1e-9
    assert found.seconds <= synchronous(costs, residents, BUS) + slack
    assert found.seconds >= max(found.computing, BUS.seconds(found.bytes_copied)) - slack
    assert found.seconds == pytest.approx(found.computing + sum(found.stalls.values()))
    if len({c.nbytes for c in costs}) == 1 and found.bytes_copied:
        assert found.seconds >= floor(costs, residents, BUS) - slack


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 60, 200]), min_size=2, max_size=9),
    slots=st.integers(1, 4),
    computes=st.lists(st.sampled_from([0.0001, 0.0004, 0.001]), min_size=9, max_size=9),
    data=st.data(),
)
def test_the_scheduler_does_what_the_simulator_says(sizes, slots, computes, data):
    """The same choice, once simulated, once run on the device whose clocks are virtual."""
    layers = stack(sizes)
    residents = data.draw(st.sets(st.sampled_from(range(len(sizes)))))
    device = RecordingDevice(compute_seconds=dict(enumerate(computes)), bytes_per_second=4e6, latency=1e-5)
    with session(layers, device, residents=residents, slots=slots) as made:
        for _ in range(5):
            run(layers)
        nbytes = made.layer_bytes
        ends = [o.end for o in device.log if o.kind == "compute"]
        costs = [LayerCost(nbytes=n, compute=c) for n, c in zip(nbytes, computes, strict=False)]
        expected = simulate(costs, residents, made.report().slots, Bus(bytes_per_second=4e6, latency=1e-5))
    count = len(sizes)
    assert ends[3 * count - 1] - ends[2 * count - 1] == pytest.approx(expected.seconds)


def test_the_report_measures_what_the_device_did():
    layers = stack((0,) * 6)
    device = RecordingDevice(compute_seconds=dict.fromkeys(range(6), 0.001), bytes_per_second=1024 / 0.002)
    with session(layers, device, residents=(0, 3)) as made:
        for _ in range(4):
            run(layers)
        made.trace()
        run(layers)
        run(layers)
        report = made.report()
    metrics = report.metrics
    assert metrics.resident_seconds == pytest.approx(0.006)
    assert metrics.copy_seconds == pytest.approx(4 * 0.002)
    assert metrics.ideal_seconds == pytest.approx(0.008)
    assert metrics.seconds == pytest.approx(metrics.resident_seconds + metrics.stall)
    assert metrics.eta == pytest.approx(1 - metrics.stall / metrics.copy_seconds)
    assert metrics.eta_max == pytest.approx(0.75)
    assert metrics.bytes_per_second == pytest.approx(1024 / 0.002)
    assert report.bus_bytes_per_second == pytest.approx(1024 / 0.002)
    computes = [span for span in report.timeline if span.kind == "compute"]
    assert [span.layer for span in computes] == list(range(6))
    assert isinstance(report, dgls_engine.Report)
