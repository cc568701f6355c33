"""The document's examples, by the memory of the card, as values of the inputs.

They are starting points for people who set things by hand; `auto` plans from what it measures and beats them
(docs/dgls.md says by how much).
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Preset:
    name: str
    least_gib: float
    """Of VRAM, for which it was written."""
    initial: int
    final: int
    prefetch: int
    compile: bool = False


PRESETS = (
    Preset(name="6 GB", least_gib=0, initial=2, final=2, prefetch=1),
    Preset(name="8-12 GB", least_gib=7, initial=3, final=3, prefetch=2),
    Preset(name="16+ GB", least_gib=15, initial=5, final=5, prefetch=3, compile=True),
)
NAMES = (AUTO, *(preset.name for preset in PRESETS), "by VRAM")


def preset(name: str, vram_gib: float) -> Preset | None:
    """The named one, for "by VRAM" that of this card, for "auto" none. Raises KeyError."""
    if name == AUTO:
        return None
    if name == "by VRAM":
        return next(p for p in reversed(PRESETS) if vram_gib >= p.least_gib)
    return {p.name: p for p in PRESETS}[name]
