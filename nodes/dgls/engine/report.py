"""What a session did, in numbers: for a text, a picture, or a benchmark's table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Span:
    """One bar of the timeline; seconds since the traced pass began (a prefetch for it may begin before: < 0)."""

    kind: Literal["copy", "compute", "stall"]
    """`stall`: the compute stream had nothing to do but wait for this layer's copy."""
    layer: int
    slot: int | None
    """Where it was copied to, or read from; None for a resident."""
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    index: int
    name: str
    bytes: int
    resident: bool
    packed: bool
    pinned: bool
    note: str
    """Why it could not be packed, and what happens instead; else empty."""
    compute_seconds: float | None
    """As measured; None before the first pass, or when the layer was skipped."""
    copy_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Of one traced pass (one forward over all layers); None where nothing was traced yet."""

    seconds: float
    """T: the layers' computes and the stalls before them."""
    resident_seconds: float
    """T_resident: the computes alone."""
    copy_seconds: float
    """T_copy: the bytes copied in one pass at the measured speed of the bus."""
    ideal_seconds: float
    """T*: the larger of the two above, which no schedule beats."""
    stall: float
    """T - T_resident."""
    eta: float
    """1 - stall / T_copy: the part of the copying that was hidden; 1 when nothing is copied."""
    eta_max: float
    """min(1, T_resident / T_copy)."""
    bytes_per_second: float | None
    """Achieved by this pass's copies while they ran; None when nothing was copied."""


@dataclass(frozen=True, kw_only=True)
class Report:
    mode: str
    """engine, unified or cpu."""
    why: str
    """Why this mode, in a sentence."""
    device: str
    policy: str
    slots: tuple[int, ...]
    """Bytes of each."""
    budget: int
    resident_bytes: int
    slot_bytes: int
    host_bytes: int
    pinned_bytes: int
    layers: tuple[LayerReport, ...]
    order: tuple[int, ...]
    """The layers as they ran in the last whole pass."""
    passes: int
    copies: int
    bytes_copied: int
    """Into slots, since the session was made."""
    hits: int
    """Visits of an offloaded layer whose copy had been asked for before."""
    misses: int
    bus_bytes_per_second: float | None
    predicted_seconds: float | None
    """A pass, as the planner's simulation has it."""
    metrics: Metrics | None
    timeline: tuple[Span, ...]
    notes: tuple[str, ...]
    """What a person should know: fallbacks, a plan made smaller, pinning refused."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)
