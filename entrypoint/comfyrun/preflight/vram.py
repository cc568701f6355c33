"""How much of the GPU's memory is free, and who holds the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Finding, info, ok, warning

if TYPE_CHECKING:
    from comfyrun.preflight.gpus import Gpu, Holder

CHECK = "vram"
ENOUGH = 0.75
"""Of a card's memory: a desktop on a small card leaves more than this."""
NAMED = 4
_MIB = 1 << 20
_GIB = 1 << 30


def check(device: Gpu) -> Finding:
    """Of a GPU with memory of its own."""
    if device.total is None:
        return info(CHECK, "the driver does not say how much memory the GPU has")
    if device.free is None:
        return info(CHECK, f"{gib(device.total)}; how much of it is free, the driver does not say")
    text = f"{gib(device.free)} of {gib(device.total)} free"
    held = holders(device)
    if device.free >= ENOUGH * device.total:
        return ok(CHECK, f"{text}; {held}" if held else text)
    if held:
        return warning(CHECK, f"{text}; {held}", "stop what is not needed, or expect swapping to RAM")
    return warning(
        CHECK,
        f"{text}; by whom the rest is held, a container cannot see",
        "on the host, nvidia-smi names them",
    )


def unified(device: Gpu, available: int | None) -> Finding:
    """Of a GPU that shares one pool with the CPU. CUDA does not count memory that the kernel would give back."""
    held = holders(device)
    parts = [
        f"{gib(available)} available (MemAvailable)" if available is not None else "",
        f"CUDA counts {gib(device.free)} as free" if device.free is not None else "",
        held,
    ]
    shown = "; ".join(part for part in parts if part) or "how much is free is not known"
    text = (
        f"one pool of {gib(device.total)} for CPU and GPU: {shown}" if device.total else f"one pool: {shown}"
    )
    room = available if available is not None else device.free
    if device.total is None or room is None or room >= ENOUGH * device.total:
        return ok(CHECK, text)
    return warning(
        CHECK,
        text,
        "a pool that overflows can freeze the whole machine: end what is not needed before loading a large model",
    )


def holders(device: Gpu) -> str:
    """Who holds memory, the largest first; empty when nobody is seen."""
    if not device.holders:
        return ""
    ranked = sorted(device.holders, key=lambda h: -(h.used or 0))
    more = len(ranked) - NAMED
    names = ", ".join(_holder(h) for h in ranked[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"held by {names}"


def _holder(holder: Holder) -> str:
    words = [w for w in (holder.name, None if holder.used is None else gib(holder.used)) if w]
    return f"PID {holder.pid}" + (f" ({', '.join(words)})" if words else "")


def gib(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size // _MIB} MiB"
