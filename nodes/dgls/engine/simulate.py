"""How long a pass takes with a given choice of residents: the scheduler's rules, played with numbers.

Two machines run: one computes the layers in their order, one copies. A copy starts when the copy machine is idle and
its slot is free, a slot becomes free when the layer in it has run, a layer runs when it is there. The passes follow
one another without a gap, so what counts is the length of a later pass, when the ring is going round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .costs import Bus, LayerCost

_PASSES = 3
"""The first fills the ring, the second lets a backlog build up, the last is measured."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    seconds: float
    """Of one pass, once the ring is going round."""
    computing: float
    """Without the stalls."""
    stalls: dict[int, float]
    """By layer: how long it waited for its copy."""
    bytes_copied: int
    """In that pass."""


def windows(offloaded: Sequence[int], nbytes: Sequence[int], count: int) -> tuple[int, ...]:
    """Sizes of `count` slots, the largest first, in which any `count` layers that follow one another have room.

    The j-th size is that of the j-th largest layer in the worst such window: where only one layer in a row is
    large, one large slot is enough.
    """
    sizes = [nbytes[i] for i in offloaded]
    if len(sizes) <= count:
        return tuple(sorted(sizes, reverse=True))
    if len(set(sizes)) == 1:
        return (sizes[0],) * count
    around = sizes + sizes[: count - 1]
    # A model has few kinds of layers, and so few different windows.
    different = set(zip(*(around[k:] for k in range(count)), strict=False))
    return tuple(map(max, zip(*(sorted(window, reverse=True) for window in different), strict=True)))


def synchronous(costs: Sequence[LayerCost], residents: Collection[int], bus: Bus) -> float:
    """Seconds of a pass in which every copy is waited for: what moving modules about gives."""
    copies = sum(bus.seconds(cost.nbytes) for i, cost in enumerate(costs) if i not in residents)
    return sum(cost.compute for cost in costs) + copies


def floor(costs: Sequence[LayerCost], residents: Collection[int], bus: Bus) -> float:
    """T*: no schedule is faster than its computes, or than its bytes over the bus."""
    copies = sum(bus.seconds(cost.nbytes) for i, cost in enumerate(costs) if i not in residents)
    return max(sum(cost.compute for cost in costs), copies)


def simulate(
    costs: Sequence[LayerCost],
    residents: Collection[int],
    slots: Sequence[int],
    bus: Bus,
    *,
    order: Sequence[int] | None = None,
) -> Simulated:
    order = range(len(costs)) if order is None else order
    run = _Run(costs, frozenset(residents), bus, order)
    largest = max(run.sizes, default=0)
    if largest > max(slots, default=0):
        raise ValueError("no slot is large enough for the largest layer")
    if len(run.ring) <= len(slots):
        return run.result(run.idle, {}, copied=0)  # what was copied once stays where it is
    return run.alike(len(slots)) if min(slots) >= largest else run.mixed(sorted(slots))


class _Run:
    """The layers that go round, and what the residents between them take."""

    def __init__(
        self, costs: Sequence[LayerCost], residents: frozenset[int], bus: Bus, order: Sequence[int]
    ) -> None:
        self.ring: list[int] = []
        self.gaps: list[float] = []
        """Computes between the one before and this one."""
        self.extra = 0
        """Bytes of layers that are moved tensor by tensor, for whose copies the compute stream waits."""
        gap = 0.0
        for i in order:
            cost = costs[i]
            if i in residents or not cost.nbytes:
                gap += cost.compute
            elif not cost.streamed:
                gap += bus.seconds(cost.nbytes) + cost.compute
                self.extra += cost.nbytes
            else:
                self.ring.append(i)
                self.gaps.append(gap)
                gap = 0.0
        self.tail = gap
        self.sizes = [costs[i].nbytes for i in self.ring]
        self.computes = [costs[i].compute for i in self.ring]
        self.copies = [bus.seconds(nbytes) for nbytes in self.sizes]
        self.idle = sum(self.gaps) + self.tail + sum(self.computes)
        """Seconds of a pass without a stall."""

    def alike(self, count: int) -> Simulated:
        """Every layer fits into every slot: they go round in turn."""
        length, now, copying = len(self.ring), 0.0, 0.0
        ready = []
        for j in range(count):
            copying += self.copies[j]
            ready.append(copying)
        turn, begun = 0, 0.0
        stalls: dict[int, float] = {}
        for _ in range(_PASSES):
            begun, stalls = now, {}
            for j in range(length):
                now += self.gaps[j]
                slot = turn % count
                if ready[slot] > now:
                    stalls[self.ring[j]] = ready[slot] - now
                    now = ready[slot]
                now += self.computes[j]
                copying = max(copying, now) + self.copies[(turn + count) % length]
                ready[slot] = copying
                turn += 1
            now += self.tail
        return self.result(now - begun, stalls, copied=sum(self.sizes))

    def mixed(self, slots: list[int]) -> Simulated:
        """The smallest free slot that is large enough; a layer that finds none holds up those behind it.

        What it leaves in the other slots meanwhile may be just what comes again: then it is not copied.
        """
        length, count = len(self.ring), len(slots)
        now, copying, begun, copied = 0.0, 0.0, 0.0, 0
        holds: list[int | None] = [None] * count
        free = [0.0] * count  # when its layer had run
        where: dict[int, int] = {}
        ready = [0.0] * length
        stalls: dict[int, float] = {}
        for step in range(_PASSES * length):
            j = step % length
            if j == 0:
                begun, stalls, copied = now, {}, 0
            window = [(j + k) % length for k in range(count)]
            for k in window:
                if k in where:
                    continue
                found = next(
                    (s for s in range(count) if slots[s] >= self.sizes[k] and holds[s] not in window), None
                )
                if found is None:
                    break
                held = holds[found]
                if held is not None:
                    del where[held]
                copying = max(copying, free[found]) + self.copies[k]
                ready[k], where[k], holds[found] = copying, found, k
                copied += self.sizes[k]
            now += self.gaps[j]
            if ready[j] > now:
                stalls[self.ring[j]] = ready[j] - now
                now = ready[j]
            now += self.computes[j]
            free[where[j]] = now
            if j == length - 1:
                now += self.tail
        return self.result(now - begun, stalls, copied=copied)

    def result(self, seconds: float, stalls: dict[int, float], *, copied: int) -> Simulated:
        return Simulated(
            seconds=seconds, computing=self.idle, stalls=stalls, bytes_copied=copied + self.extra
        )
