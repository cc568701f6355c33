"""Which layers stay on the device: the best of the obvious choices, made better by trying exchanges.

What makes a choice good is not obvious: a layer costs more when its copy is long and its neighbours' computes are
short, and large layers make large slots, whose bytes residents could have had. So every choice is played through
(`simulate`), the obvious ones first; the search starts from the best of them and keeps only what is faster.
It can therefore not be worse than first/last or evenly spaced, in the simulation.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BudgetError
from .policy import AUTO, Auto, Evenly, FirstLast, Indices, chosen
from .simulate import simulate, windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .costs import Bus, LayerCost
    from .policy import Policy

SLOTS = (2, 3, 4)
"""How many the planner tries when nobody says. With one, nothing overlaps; beyond four nothing was ever gained."""
_TRIES = 3000
"""Simulations of the search, at most; each takes 30 to 100 µs for 57 layers."""
_PATIENCE = 700
"""Simulations without a gain after which the search ends."""
_ENOUGH = 1.0005
"""Times the computes alone: nothing is left to gain."""
_GAIN = 0.9999
_SMALL = 100_000
"""Bytes, below which megabytes say nothing."""
_NEAR = 3
"""Layers this far apart are neighbours to the search."""
_SAME = 1.001
"""Fewer slots win unless more gain at least this."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    policy: str
    residents: frozenset[int]
    slots: tuple[int, ...]
    """Bytes of each, the largest first."""
    resident_bytes: int
    seconds: float
    """Of a pass, as simulated."""
    late: tuple[int, ...] = ()
    """Layers that wait for their copies."""

    @property
    def nbytes(self) -> int:
        return self.resident_bytes + sum(self.slots)


def minimum(nbytes: Sequence[int], streamed: Sequence[bool]) -> int:
    """The smallest budget with which anything can run: one slot for the largest layer.

    And room for the largest of those that have no slot.
    """
    sizes = list(zip(nbytes, streamed, strict=True))
    return max((n for n, yes in sizes if yes), default=0) + max((n for n, yes in sizes if not yes), default=0)


def make_plan(
    costs: Sequence[LayerCost],
    bus: Bus,
    budget: int,
    *,
    policy: Policy = AUTO,
    slots: int | None = None,
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan for `budget` bytes; raises BudgetError, which says how many would do.

    With a policy made by hand, its residents stay as far as they fit, the first named first.
    """
    planner = Planner(costs, bus, budget, range(len(costs)) if order is None else order)
    planner.check(names)
    if isinstance(policy, Auto):
        counts = planner.counts(slots)
        plans = [planner.planned(count, random.Random(seed)) for count in counts]  # noqa: S311
        best = min(plan.seconds for plan in plans)
        return next(plan for plan in plans if plan.seconds <= best * _SAME)
    count = planner.counts(slots if slots is not None else 2)[0]
    if isinstance(policy, Evenly):
        return planner.evenly(count)
    return planner.by_hand(chosen(policy, len(costs)), count, _text(policy))


class Planner:
    """All choices for one model, one bus and one budget."""

    def __init__(self, costs: Sequence[LayerCost], bus: Bus, budget: int, order: Sequence[int]) -> None:
        self.costs, self.bus, self.budget = costs, bus, budget
        # A layer that the last pass left out may come in the next one.
        self.order = [*order, *(i for i in range(len(costs)) if i not in set(order))]
        self.nbytes = [cost.nbytes for cost in costs]
        self._streamed = [cost.streamed and cost.nbytes > 0 for cost in costs]
        self._unstreamed = [i for i, cost in enumerate(costs) if not cost.streamed]

    def check(self, names: Sequence[str] | None) -> None:
        streamed = [cost.streamed for cost in self.costs]
        needed = minimum(self.nbytes, streamed)
        if needed > self.budget:
            largest = self.nbytes.index(max(self.nbytes))
            name = names[largest] if names else f"layer {largest}"
            raise BudgetError(
                f"a budget of {_megabytes(self.budget)} does not hold one layer: the largest ({name}) needs "
                f"{_megabytes(needed)}, and {_megabytes(2 * needed)} are needed to copy while another one computes",
                needed=needed,
            )

    def counts(self, slots: int | None) -> list[int]:
        """Numbers of slots to try: as asked for, or fewer when so many do not fit even without residents."""
        wanted = SLOTS if slots is None else (slots,)
        fitting = [n for n in wanted if self.plan(frozenset(), n, "")]
        if fitting:
            return fitting
        return [
            next(n for n in range(max(min(wanted) - 1, 1), 0, -1) if n == 1 or self.plan(frozenset(), n, ""))
        ]

    # -- choices ----------------------------------------------------------------------------------
    def planned(self, count: int, dice: random.Random) -> Plan:
        best = min(self.obvious(count), key=lambda plan: plan.seconds)
        return self._improved(best, count, dice)

    def obvious(self, count: int) -> list[Plan]:
        everyone = self.order
        by_ratio = sorted(everyone, key=lambda i: self.costs[i].compute / max(self.nbytes[i], 1))
        by_size = sorted(everyone, key=lambda i: -self.nbytes[i])
        return [
            self.evenly(count),
            self.by_hand(_both_ends(everyone), count, "first/last"),
            self.by_hand(everyone, count, "first"),
            self.by_hand(everyone[::-1], count, "last"),
            self.by_hand(by_ratio, count, "highest copy/compute ratio"),
            self.by_hand(by_size, count, "largest"),
            self._paced(count),
        ]

    def by_hand(self, wanted: Iterable[int], count: int, name: str) -> Plan:
        """As many of these as fit, one after the other."""
        residents: frozenset[int] = self._free_of_charge()
        for i in wanted:
            if i not in residents and self.plan(residents | {i}, count, name):
                residents |= {i}
        return self._named(residents, count, name)

    def evenly(self, count: int) -> Plan:
        """Offloaded layers as far from each other as can be, by bytes; as few of them as the budget allows."""
        low, high = 0.0, 1.0  # the part that is offloaded; the smallest that fits, by halving
        fitting = self._spread(1.0)
        for _ in range(10):
            middle = (low + high) / 2
            residents = self._spread(middle)
            if self.plan(residents, count, ""):
                fitting, high = residents, middle
            else:
                low = middle
        return self._named(fitting, count, "evenly spaced")

    def _spread(self, part: float) -> frozenset[int]:
        """Offload a layer whenever the bytes offloaded so far have fallen behind `part` of those passed."""
        residents, passed, offloaded = set(self._free_of_charge()), 0, 0
        for i in self.order:
            passed += self.nbytes[i]
            if i in residents:
                continue
            if offloaded + self.nbytes[i] / 2 <= part * passed - (0 if part == 1 else self.nbytes[i] / 2):
                offloaded += self.nbytes[i]
            else:
                residents.add(i)
        return frozenset(residents) if part < 1 else self._free_of_charge()

    def _paced(self, count: int) -> Plan:
        """Offload whatever the bus has brought by the time it is needed; then fill up with those that cost most."""
        credit, late = 0.0, []
        for i in [*self.order, *self.order]:
            seconds = self.bus.seconds(self.nbytes[i])
            if credit >= seconds:
                credit -= seconds
            else:
                late.append(i)
            credit = min(credit + self.costs[i].compute, count * seconds)
        return self.by_hand([*dict.fromkeys(late[::-1]), *self.order], count, "paced")

    def _free_of_charge(self) -> frozenset[int]:
        return frozenset(i for i, nbytes in enumerate(self.nbytes) if not nbytes)

    # -- search -----------------------------------------------------------------------------------
    def _improved(self, best: Plan, count: int, dice: random.Random) -> Plan:
        """Exchange one or two residents for others as long as that helps; `dice` makes it repeatable."""
        least = self._least(count)
        stale = 0
        for _ in range(_TRIES):
            offloaded = [i for i in self.order if i not in best.residents]
            held = [i for i in best.residents if self.nbytes[i]]
            if best.seconds <= least * _ENOUGH or not offloaded or stale > _PATIENCE:
                break
            # A layer that is waited for, or one a little before it, is the likeliest to be better off resident.
            late = [i for i in offloaded if any(0 <= other - i <= _NEAR for other in best.late)]
            wanted = late if late and dice.randrange(2) else offloaded
            tried = self._exchanged(best.residents, held, wanted, dice)
            plan = self._filled(tried, offloaded, count, dice)
            stale += 1
            # As good is taken too: from there another exchange may gain.
            if plan and plan.seconds <= best.seconds:
                stale = 0 if plan.seconds < best.seconds * _GAIN else stale
                best = plan
        return best

    def plan_bytes(self, residents: frozenset[int]) -> int:
        """Of the residents and two slots of the largest layer that goes: near enough to choose by."""
        largest = max((n for i, n in enumerate(self.nbytes) if i not in residents), default=0)
        return sum(self.nbytes[i] for i in residents) + 2 * largest

    def _least(self, count: int) -> float:
        """No plan is faster: all computes, or the bytes for which there is no room, over the bus."""
        over = sum(self.nbytes) + count * min(filter(None, self.nbytes), default=0) - self.budget
        return max(sum(cost.compute for cost in self.costs), over / self.bus.bytes_per_second)

    def _exchanged(
        self, residents: frozenset[int], held: list[int], candidates: list[int], dice: random.Random
    ) -> frozenset[int]:
        """One or two more residents, and others given up for their bytes."""
        wanted = dice.sample(candidates, min(dice.choice((1, 1, 2)), len(candidates)))
        room = self.budget - self.plan_bytes(residents)
        room -= sum(self.nbytes[i] for i in wanted)
        # Neighbours exchanged move a gap; strangers change the mixture.
        near = [i for i in held if any(abs(i - other) <= _NEAR for other in wanted)]
        out = [*dice.sample(near, len(near)), *dice.sample(held, len(held))] if dice.randrange(2) else []
        out += dice.sample(held, len(held))
        given: set[int] = set()
        for i in out:
            if room >= 0 and given:
                break
            if i not in given:
                given.add(i)
                room += self.nbytes[i]
        return (residents - given) | set(wanted)

    def _filled(
        self, residents: frozenset[int], candidates: list[int], count: int, dice: random.Random
    ) -> Plan | None:
        """With more residents while there is room for one."""
        plan = self.plan(residents, count, "planned")
        if plan is None:
            return None
        for i in dice.sample(candidates, len(candidates)):
            if i not in residents and self.nbytes[i] <= self.budget - plan.nbytes:
                more = self.plan(residents | {i}, count, "planned")
                if more:
                    residents, plan = residents | {i}, more
        return self._named(residents, count, "planned")

    # -- one choice -------------------------------------------------------------------------------
    def plan(self, residents: frozenset[int], count: int, name: str) -> Plan | None:
        """Without its seconds; None when it does not fit."""
        resident_bytes = sum(self.nbytes[i] for i in residents)
        if resident_bytes > self.budget:
            return None
        ring = [i for i in self.order if i not in residents and self._streamed[i]]
        slots = windows(ring, self.nbytes, count)
        # A layer that is not streamed needs its bytes too while it runs.
        loose = max((self.nbytes[i] for i in self._unstreamed if i not in residents), default=0)
        if resident_bytes + sum(slots) + loose > self.budget:
            return None
        return Plan(policy=name, residents=residents, slots=slots, resident_bytes=resident_bytes, seconds=0.0)

    def _named(self, residents: frozenset[int], count: int, name: str) -> Plan:
        plan = self.plan(residents, count, name)
        assert plan is not None
        simulated = simulate(self.costs, residents, plan.slots, self.bus, order=self.order)
        return dataclasses.replace(plan, seconds=simulated.seconds, late=tuple(simulated.stalls))


def _both_ends(order: Sequence[int]) -> list[int]:
    """0, -1, 1, -2, …"""
    wanted: list[int] = []
    for front, back in zip(order, reversed(order), strict=True):
        wanted += [front, back]
    return list(dict.fromkeys(wanted))


def _text(policy: FirstLast | Indices) -> str:
    match policy:
        case FirstLast(first=first, last=last):
            return f"first {first}, last {last}"
        case Indices(layers=layers):
            return f"layers {', '.join(map(str, layers))}" if layers else "no layers"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= _SMALL else f"{nbytes:,} bytes"
