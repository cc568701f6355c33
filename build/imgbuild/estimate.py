"""What a build will take, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.plan import Plan

# Measured on the images of this repository (bench/sizes.py, df), Docker 26 with the containerd store, two cores:
# unpacked bytes are 1.75 to 1.85 times the wheels' plus base and bytecode, and the engine holds each of them 3.7 times
# (finished stage, merged layer, uncompressed blob, unpacked image).
UNPACKED_PER_WHEEL = 1.75
UNPACKED_BESIDE = 950_000_000
COPIES = 3.8
# And zstd's layers: 1.0 to 1.1 times the wheels, and the base.
COMPRESSED_PER_WHEEL = 1.1
COMPRESSED_BESIDE = 350_000_000
_SECONDS_PER_GB = 50
_SECONDS_BESIDE = 60
_SECONDS_EMULATED = 200  # a foreign base, where it has to be bootstrapped


@dataclass(frozen=True, kw_only=True)
class Need:
    bytes: int
    seconds: int
    tags: tuple[str, ...]

    def sentence(self, free: int | None) -> str:
        at_hand = f"; {gigabytes(free)} are free" if free is not None else ""
        minutes = max(1, round(self.seconds / 60))
        return f"a cold build takes up to {gigabytes(self.bytes)} of disk{at_hand}, and about {minutes} min on two cores"


def disk(plans: Sequence[Plan], *, host_platform: str) -> Need:
    """Layers that several targets share are counted once."""
    layers = {
        (p.platform, p.base.name, layer.name, layer.wheels): layer.size for p in plans for layer in p.layers
    }
    bases = {(p.platform, p.base.name) for p in plans}
    wheels = sum(layers.values())
    foreign = sum(platform != host_platform for platform, _ in bases)
    seconds = wheels / 1e9 * _SECONDS_PER_GB + len(bases) * _SECONDS_BESIDE + foreign * _SECONDS_EMULATED
    return Need(
        bytes=int((wheels * UNPACKED_PER_WHEEL + UNPACKED_BESIDE * len(bases)) * COPIES),
        seconds=int(seconds),
        tags=tuple(p.tags[0] for p in plans),
    )


def compressed(plan: Plan) -> int:
    """Bytes of an image as it is published."""
    return int(plan.wheels_size * COMPRESSED_PER_WHEEL + COMPRESSED_BESIDE)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
