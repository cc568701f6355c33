from __future__ import annotations

import fluxmodel
import pytest
from dgls_engine import Auto, BudgetError, Evenly, FirstLast, Indices, PlanError
from dgls_engine.costs import Bus, LayerCost
from dgls_engine.plan import Planner, make_plan
from dgls_engine.policy import chosen
from dgls_engine.simulate import simulate
from hypothesis import given, settings
from hypothesis import strategies as st

MB = 1_000_000
BUS = Bus(bytes_per_second=1e9)

# The design's table, and how far ours is from it, in percentage points: see fluxmodel.py for what is assumed.
TABLE = {
    ("H100", 0.3): (55, 77, 94, 100),
    ("H100", 0.5): (42, 59, 72, 76),
    ("4090", 0.5): (59, 90, 97, 100),
    ("4090", 0.7): (51, 83, 84, 99),
}
NEAR = 2.0
# 50 % of the bytes over 52 GB/s alone take 113.9 ms, the computes 82.5 ms: no schedule that copies them can
# reach more than 72 %. The table's 76 % counts fewer bytes than half as offloaded.
PHYSICS = {("H100", 0.5): 72.5}


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case[0]}-{case[1]:.0%}")
def test_the_table_of_the_design(case):
    row = fluxmodel.row(*case)
    found = (row.synchronous, row.first_last, row.evenly, row.planned)
    for name, ours, theirs in zip(
        ("synchronous", "first/last", "evenly", "planned"), found, TABLE[case], strict=True
    ):
        theirs = min(theirs, PHYSICS.get(case, 100))  # noqa: PLW2901
        assert abs(ours - theirs) <= NEAR, f"{name}: {ours:.1f}, the design says {theirs}"


def test_a_4070_streams_flux_for_free():
    assert fluxmodel.row("4070", 1.0).planned > 99


def test_flux_with_30_percent_offloaded_gains_15_percent_over_first_last():
    row = fluxmodel.row("H100", 0.3)
    assert row.planned >= 1.15 * row.first_last


MODELS = st.lists(
    st.builds(
        LayerCost,
        nbytes=st.sampled_from([0, MB // 3, MB, 2 * MB]),
        compute=st.floats(0.00001, 0.004),
        streamed=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=80, deadline=None)
@given(costs=MODELS, part=st.floats(0, 1.2), slots=st.sampled_from([None, 1, 2, 3, 4]), data=st.data())
def test_never_worse_than_the_obvious_and_never_over_the_budget(costs, part, slots, data):
    total = sum(cost.nbytes for cost in costs)
    budget = int(part * total)
    count = len(costs)
    try:
        plan = make_plan(costs, BUS, budget, slots=slots)
    except BudgetError as e:
        assert budget < e.needed <= 2 * max(cost.nbytes for cost in costs)
        return
    assert plan.nbytes <= budget
    assert plan.seconds == pytest.approx(simulate(costs, plan.residents, plan.slots, BUS).seconds)
    first = data.draw(st.integers(0, count))
    for policy in (Evenly(), FirstLast(first=first, last=count), FirstLast(first=count, last=0)):
        other = make_plan(costs, BUS, budget, slots=slots, policy=policy)
        assert other.nbytes <= budget
        if slots is not None or isinstance(policy, Evenly):
            assert plan.seconds <= other.seconds * 1.0011  # fewer slots win below 0.1 %


@settings(max_examples=60, deadline=None)
@given(costs=MODELS, part=st.floats(0.1, 1.2), count=st.integers(1, 4))
def test_the_search_starts_from_the_best_of_the_obvious(costs, part, count):
    planner = Planner(costs, BUS, int(part * sum(c.nbytes for c in costs)), range(len(costs)))
    try:
        planner.check(None)
    except BudgetError:
        return
    if not planner.plan(frozenset(), count, ""):
        return
    planned = make_plan(costs, BUS, planner.budget, slots=count)
    assert planned.seconds <= min(plan.seconds for plan in planner.obvious(count)) + 1e-12


def test_the_same_plan_every_time():
    costs, bus = fluxmodel.costs("4090")
    budget = sum(cost.nbytes for cost in costs) // 3
    assert make_plan(costs, bus, budget) == make_plan(costs, bus, budget)


def test_everything_stays_when_there_is_room():
    costs = [LayerCost(nbytes=MB, compute=0.001)] * 5
    plan = make_plan(costs, BUS, 5 * MB)
    assert len(plan.residents) + len(plan.slots) == 5  # what is in a slot of its own stays there, too
    assert plan.seconds == pytest.approx(0.005)


def test_a_budget_too_small_for_one_layer_says_what_is_needed():
    costs = [LayerCost(nbytes=MB, compute=0.001), LayerCost(nbytes=3 * MB, compute=0.001)]
    with pytest.raises(
        BudgetError, match=r"a budget of 2\.0 MB .* \(blocks\.1\) needs 3\.0 MB, and 6\.0 MB"
    ) as e:
        make_plan(costs, BUS, 2 * MB, names=["blocks.0", "blocks.1"])
    assert e.value.needed == 3 * MB


def test_one_slot_when_there_is_no_room_for_two():
    costs = [LayerCost(nbytes=MB, compute=0.001)] * 3
    for policy in (Auto(), Evenly(), FirstLast(first=1, last=1)):
        assert make_plan(costs, BUS, MB * 3 // 2, policy=policy).slots == (MB,)


def test_by_hand_as_far_as_it_fits_in_the_order_named():
    costs = [LayerCost(nbytes=MB, compute=0.001)] * 10
    assert make_plan(costs, BUS, 5 * MB, policy=FirstLast(first=2, last=9)).residents == {0, 1, 9}
    assert make_plan(costs, BUS, 4 * MB, policy=Indices(layers=(7, 2, 4))).residents == {7, 2}


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        (FirstLast(first=2, last=1), [0, 1, 4]),
        (FirstLast(first=9, last=9), [0, 1, 2, 3, 4]),
        (FirstLast(first=3, last=4), [0, 1, 2, 4, 3]),
        (FirstLast(first=0, last=0), []),
        (Indices(layers=(3, 3, 0)), [3, 0]),
    ],
)
def test_policies_by_hand(policy, found):
    assert chosen(policy, 5) == found


def test_policies_that_name_no_layer():
    with pytest.raises(PlanError, match=r"no layer -1, 5, 77: the model has 5, counted 0 to 4"):
        chosen(Indices(layers=(77, 0, 5, -1)), 5)
    with pytest.raises(PlanError, match="negative"):
        FirstLast(first=-1, last=0)
