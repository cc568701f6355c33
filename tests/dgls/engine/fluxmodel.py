"""The cost model behind the table of the design: Flux at 1024 x 1024 in bf16, on three cards.

Bytes: a double block has 339.8 million parameters, a single block 141.6 million, of 2 bytes. Bus: what pinned copies
reach in practice, PCIe 5 about 52 GB/s (H100), PCIe 4 about 25 (4090, 4070). Computes: from the copy/compute ratios
of one block, which are the design's own numbers; nothing here was measured on a card.

`part` is the part of the weights' bytes that has to go; the budget of every choice is the bytes that stay and
two slots of a double block. `synchronous` and the others keep exactly to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgls_engine.costs import Bus, LayerCost
from dgls_engine.plan import Planner, make_plan
from dgls_engine.simulate import synchronous

DOUBLE, SINGLE = 2 * 339_800_000, 2 * 141_600_000
CARDS = {"H100": (52e9, 4.5, 1.9), "4090": (25e9, 2.3, 0.95), "4070": (25e9, 0.94, 0.39)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Percent of the speed with everything resident."""

    synchronous: float
    first_last: float
    evenly: float
    planned: float


def costs(card: str) -> tuple[list[LayerCost], Bus]:
    speed, double, single = CARDS[card]
    bus = Bus(bytes_per_second=speed)
    return [
        *[LayerCost(nbytes=DOUBLE, compute=DOUBLE / speed / double)] * 19,
        *[LayerCost(nbytes=SINGLE, compute=SINGLE / speed / single)] * 38,
    ], bus


def row(card: str, part: float) -> Row:
    layers, bus = costs(card)
    total = sum(layer.nbytes for layer in layers)
    budget = int((1 - part) * total) + 2 * DOUBLE
    planner = Planner(layers, bus, budget, range(len(layers)))
    evenly = planner.evenly(2)
    ends = [i for pair in zip(range(29), range(56, 27, -1), strict=True) for i in pair]
    first_last = planner.by_hand(dict.fromkeys(ends), 2, "first/last")
    planned = make_plan(layers, bus, budget, slots=2)
    full = sum(layer.compute for layer in layers)
    return Row(
        synchronous=100 * full / synchronous(layers, evenly.residents, bus),
        first_last=100 * full / first_last.seconds,
        evenly=100 * full / evenly.seconds,
        planned=100 * full / planned.seconds,
    )
