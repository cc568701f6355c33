"""The container's memory limit beside the machine's memory: ComfyUI pins by the latter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Finding, info, ok, warning
from comfyrun.preflight.vram import gib

if TYPE_CHECKING:
    from comfyrun.preflight.system import System

CHECK = "memory"
MEMINFO = "/proc/meminfo"
_LINE = re.compile(r"^(\w+):\s+(\d{1,15}) kB$", re.MULTILINE)
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """In bytes; what /proc/meminfo says is the machine's, also inside a container."""

    total: int | None
    available: int | None
    swap: int
    limit: int | None
    """The container's; None when it has none below the machine's memory."""


def look(system: System) -> HostMemory:
    found = {name: int(value) << 10 for name, value in _LINE.findall(system.read(MEMINFO) or "")}
    total = found.get("MemTotal") or None
    limit = _limit(system)
    return HostMemory(
        total=total,
        available=found.get("MemAvailable"),
        swap=found.get("SwapTotal", 0),
        limit=None if limit is None or (total is not None and limit >= total) else limit,
    )


def check(memory: HostMemory, *, pins: bool) -> Finding:
    """`pins`: whether ComfyUI will page-lock host memory (a GPU, and no --disable-pinned-memory)."""
    if memory.limit is None:
        if memory.total is None:
            return info(CHECK, "how much memory the machine has is not known (/proc/meminfo cannot be read)")
        free = "" if memory.available is None else f", {gib(memory.available)} available"
        return ok(CHECK, f"{gib(memory.total)}{free}; the container has no limit of its own")
    machine = "an unknown amount" if memory.total is None else gib(memory.total)
    text = f"this container may use {gib(memory.limit)}, the machine has {machine}"
    ceiling = pinned(memory)
    if not pins or (ceiling is not None and ceiling <= memory.limit):
        return info(CHECK, text)
    most = "" if ceiling is None else f" (up to {gib(ceiling)})"
    return warning(
        CHECK,
        f"{text}; ComfyUI pins memory by what the machine has{most}, and is killed at the limit (exit code 137)",
        "raise the limit (--memory), or start with --disable-pinned-memory (COMFY_ARGS)",
    )


def pinned(memory: HostMemory) -> int | None:
    """The most that ComfyUI 0.33 page-locks (MAX_PINNED_MEMORY in comfy/model_management.py)."""
    ram = memory.total
    if ram is None:
        return None
    return int(max(ram * 0.40, min(ram * 0.90, ram - 4 * _GIB, ram + memory.swap - 16 * _GIB)))


def _limit(system: System) -> int | None:
    """The lowest limit of this process's control group and those above it, version 2 and 1."""
    found = []
    for line in (system.read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # The path is the host's where the group has no name space of its own, and then not to be found here.
        parts = [part for part in path.split("/") if part not in ("", "..")][:32]
        for depth in range(len(parts) + 1):
            text = (system.read("/".join((root, *parts[:depth], name))) or "").strip()
            if text.isascii() and text.isdecimal() and len(text) < 20:  # noqa: PLR2004  ("max" is none)
                found.append(int(text))
    return min((value for value in found if value), default=None)
