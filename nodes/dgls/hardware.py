"""Is the GPU's memory the host's memory? And how much of it there is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "DGLS_MODE"
"""auto (default), engine, unified or off: what `mode: auto` of the node stands for on this machine."""


def integrated(device: torch.device) -> str | None:
    """The GPU's name where it shares the host's memory (GB10, Jetson), else None."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return str(properties.name) if getattr(properties, "is_integrated", False) else None


def memory_gib(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.get_device_properties(device).total_memory) / 2**30


def wanted(mode: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The mode to work in (auto stays auto where nobody decided), and who decided."""
    if mode != "auto":
        return mode, f"the node says {mode}"
    named = environ.get(VARIABLE, "").strip().lower()
    if named in ("engine", "unified", "off"):
        return named, f"{VARIABLE}={named}"
    return "auto", ""


def resolve(mode: str, device: torch.device, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """engine, unified, cpu or off, and a sentence that says why."""
    decided, who = wanted(mode, environ)
    if decided == "off":
        return "off", f"{who}: the model is used as ComfyUI would without DGLS"
    if device.type == "cpu":
        return "cpu", "ComfyUI runs on the CPU: layers are copied within host memory, which only tests want"
    if device.type != "cuda":
        return "off", f"the engine knows NVIDIA GPUs, not {device.type}: the model is used as without DGLS"
    return _on_gpu(decided, who, integrated(device))


def _on_gpu(decided: str, who: str, shared: str | None) -> tuple[str, str]:
    if decided == "unified":
        return "unified", f"{who}: the weights stay whole where the GPU reads them, nothing is swapped"
    if decided == "engine":
        note = f" ({shared} shares the host's memory, so this gains nothing)" if shared else ""
        return "engine", f"{who}{note}"
    if shared:
        return "unified", (
            f"{shared} shares the host's memory: a copy would move a layer from that memory into the same memory. "
            f"Swapping is off, the weights are there once. mode: engine, or {VARIABLE}=engine, turns it on"
        )
    return "engine", "the GPU has memory of its own, which layers are copied into ahead of their use"
