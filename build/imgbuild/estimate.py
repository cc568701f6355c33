"""What a build will take, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.plan import Plan

# Measured with `bench/sizes.py` on the images of this repository: unpacked bytes per wheel byte, the
# bytes of an unpacked base, and how often the engine's store holds an unpacked byte (build cache,
# uncompressed blob, image).
UNPACKED_PER_WHEEL = 1.75
BASE = 600_000_000
COPIES = 3.5
_SECONDS_PER_GB = 45


@dataclass(frozen=True, kw_only=True)
class Need:
    bytes: int
    seconds: int
    tags: tuple[str, ...]

    def sentence(self, free: int | None) -> str:
        at_hand = f"; {gigabytes(free)} are free" if free is not None else ""
        minutes = max(1, round(self.seconds / 60))
        return f"a cold build takes up to {gigabytes(self.bytes)} of disk{at_hand}, and about {minutes} min on two cores"


def disk(plans: Sequence[Plan]) -> Need:
    """Layers that several targets share are counted once."""
    layers = {
        (p.platform, p.base.name, layer.name, layer.wheels): layer.size for p in plans for layer in p.layers
    }
    base = BASE * len({(p.platform, p.base.name) for p in plans})
    wheels = sum(layers.values())
    unpacked = wheels * UNPACKED_PER_WHEEL + base
    return Need(
        bytes=int(unpacked * COPIES),
        seconds=int(wheels / 1e9 * _SECONDS_PER_GB) + 30 * len(plans),
        tags=tuple(p.tags[0] for p in plans),
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
