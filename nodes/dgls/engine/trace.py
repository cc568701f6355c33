"""Times of one pass: timed events around copies and computes, read when the pass is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .device import Stream
from .report import Metrics, Span

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .device import Device
    from .pool import Slot, SlotPool
    from .store import HostStore


@dataclass(eq=False, kw_only=True)
class _Timed:
    layer: int
    slot: int | None
    start: Any
    end: Any
    asked: Any = None
    """Of a compute: before it waited for its copy."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a trace has found."""

    signature: Hashable
    timeline: tuple[Span, ...]
    computes: dict[int, float]
    copies: dict[int, float]
    copied_bytes: int
    copied_seconds: float
    metrics: Metrics


class Trace:
    def __init__(self, device: Device, pool: SlotPool, signature: Hashable) -> None:
        self._device = device
        self._numbers = {slot: n for n, slot in enumerate(pool.slots)}
        self.signature = signature
        self._copies: list[_Timed] = []
        self._computes: list[_Timed] = []

    def mark(self, stream: Stream) -> Any:
        event = self._device.event(timed=True)
        self._device.record(event, stream)
        return event

    def copy_begins(self) -> Any:
        return self.mark(Stream.COPY)

    def copy_ends(self, begun: Any, layer: int, slot: Slot) -> None:
        self._copies.append(
            _Timed(layer=layer, slot=self._numbers.get(slot), start=begun, end=self.mark(Stream.COPY))
        )

    def computed(self, layer: int, slot: Slot | None, asked: Any, begun: Any) -> None:
        number = None if slot is None else self._numbers.get(slot)
        end = self.mark(Stream.COMPUTE)
        self._computes.append(_Timed(layer=layer, slot=number, start=begun, end=end, asked=asked))

    def read(self, store: HostStore) -> Traced | None:
        """Waits for the pass to end on the device; None if nothing was computed."""
        if not self._computes:
            return None
        device, origin = self._device, self._computes[0].asked
        spans: list[Span] = []
        computes: dict[int, float] = {}
        copies: dict[int, float] = {}
        for timed in self._computes:
            asked, start, end = (device.seconds(origin, e) for e in (timed.asked, timed.start, timed.end))
            if start > asked:
                spans.append(Span(kind="stall", layer=timed.layer, slot=timed.slot, start=asked, end=start))
            spans.append(Span(kind="compute", layer=timed.layer, slot=timed.slot, start=start, end=end))
            computes[timed.layer] = computes.get(timed.layer, 0.0) + end - start
        for timed in self._copies:
            start, end = device.seconds(origin, timed.start), device.seconds(origin, timed.end)
            spans.append(Span(kind="copy", layer=timed.layer, slot=timed.slot, start=start, end=end))
            copies[timed.layer] = end - start
        nbytes = sum(store.layers[timed.layer].nbytes for timed in self._copies)
        copying = sum(span.end - span.start for span in spans if span.kind == "copy")
        return Traced(
            signature=self.signature,
            timeline=tuple(sorted(spans, key=lambda span: span.start)),
            computes=computes,
            copies=copies,
            copied_bytes=nbytes,
            copied_seconds=copying,
            metrics=_metrics(spans, nbytes, copying, overlaps=device.overlaps),
        )


def _metrics(spans: list[Span], nbytes: int, copying: float, *, overlaps: bool) -> Metrics:
    resident = sum(s.end - s.start for s in spans if s.kind == "compute")
    stall = sum(s.end - s.start for s in spans if s.kind == "stall") if overlaps else copying
    return Metrics(
        seconds=resident + stall,
        resident_seconds=resident,
        copy_seconds=copying,
        ideal_seconds=max(resident, copying),
        stall=stall,
        eta=1 - stall / copying if copying else 1.0,
        eta_max=min(1.0, resident / copying) if copying else 1.0,
        bytes_per_second=nbytes / copying if copying else None,
    )
