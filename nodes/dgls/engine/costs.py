"""What running and copying a layer costs, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    nbytes: int
    compute: float
    """Seconds, with its weights on the device."""
    streamed: bool = True
    """False for a layer that could not be packed: it goes over tensor by tensor while the compute stream waits."""


@dataclass(frozen=True, kw_only=True)
class Bus:
    bytes_per_second: float
    latency: float = 10e-6
    """Of one copy, before its first byte: launch and set-up."""

    def seconds(self, nbytes: int) -> float:
        return self.latency + nbytes / self.bytes_per_second if nbytes else 0.0
