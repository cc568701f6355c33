"""The engine's report as text, and one for models that do not swap."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .engine import LayerReport, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .patcher import DGLSPatcher

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def of(patcher: DGLSPatcher) -> Report:
    """Of the last run. A model that was not swapped, or not run yet, has one too: what and why."""
    mode = patcher.dgls_mode
    found = patcher.dgls.report() if patcher.dgls_swaps else None
    if found is not None:
        return dataclasses.replace(found, notes=(*patcher.dgls_settings.notes, *found.notes))
    state = patcher.dgls
    notes = () if not patcher.dgls_swaps else ("the model has not run yet",)
    loaded = mode in ("unified", "off") and patcher.loaded_size() > 0
    layers = tuple(
        LayerReport(
            index=i,
            name=layer.name,
            bytes=sum(t.nbytes for t in (*layer.module.parameters(), *layer.module.buffers())),
            resident=loaded,
            packed=False,
            pinned=False,
            note="",
            compute_seconds=None,
            copy_seconds=None,
        )
        for i, layer in enumerate(state.layers.layers)
    )
    held = sum(layer.bytes for layer in layers)
    return Report(
        mode=mode,
        why=state.why,
        device=str(patcher.load_device),
        policy="everything" if mode in ("unified", "off") else type(patcher.dgls_settings.policy).__name__,
        slots=(),
        budget=held,
        resident_bytes=held if loaded else 0,
        slot_bytes=0,
        host_bytes=0 if loaded else held,
        pinned_bytes=0,
        layers=layers,
        order=(),
        passes=0,
        copies=0,
        bytes_copied=0,
        hits=0,
        misses=0,
        bus_bytes_per_second=None,
        predicted_seconds=None,
        metrics=None,
        timeline=(),
        notes=(*patcher.dgls_settings.notes, *notes),
    )


def size(count: float) -> str:
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} bytes"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def ranges(numbers: list[int]) -> str:
    """As people write them: 0-2, 7, 9-12."""
    parts: list[str] = []
    for number in numbers:
        first, _, last = parts[-1].partition("-") if parts else ("", "", "")
        if parts and int(last or first) == number - 1:
            parts[-1] = f"{first}-{number}"
        else:
            parts.append(str(number))
    return ", ".join(parts) or "none"


def text(report: Report) -> str:
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    stay = [layer.index for layer in report.layers if layer.resident]
    yield f"DGLS: {report.mode} on {report.device}"
    yield f"why: {report.why}"
    yield f"layers: {len(report.layers)}, {size(sum(layer.bytes for layer in report.layers))} in all"
    yield f"on the GPU throughout ({len(stay)}, {size(report.resident_bytes)}): {ranges(stay)}"
    if report.slots:
        each = ", ".join(map(size, report.slots))
        yield f"buffers for the others: {len(report.slots)} ({each}); chosen by: {report.policy}"
    yield f"host memory: {size(report.host_bytes)}, of it pinned {size(report.pinned_bytes)}"
    yield (
        f"passes: {report.passes}; copies: {report.copies} ({size(report.bytes_copied)}); "
        f"asked for in time: {report.hits}, too late: {report.misses}"
    )
    if report.bus_bytes_per_second:
        yield f"bus, measured: {report.bus_bytes_per_second / 1e9:.1f} GB/s"
    if report.metrics is not None:
        m = report.metrics
        yield (
            f"one pass: {seconds(m.seconds)}, were all resident {seconds(m.resident_seconds)}, "
            f"its copies alone {seconds(m.copy_seconds)}, no schedule beats {seconds(m.ideal_seconds)}"
        )
        yield (
            f"waited: {seconds(m.stall)}; copying hidden: {m.eta:.0%} (at best {m.eta_max:.0%})"
            + (f"; planned: {seconds(report.predicted_seconds)}" if report.predicted_seconds else "")
        )
    for layer in report.layers:
        if layer.note:
            yield f"layer {layer.index} ({layer.name}): {layer.note}"
    for note in report.notes:
        yield f"note: {note}"
