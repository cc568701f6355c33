"""How much memory a model can have on each kind of hardware that images are built for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfywork.errors import ConfigError, nearest

PROFILE = Path("/etc/comfyrun/profile.json")
"""Of the image that this runs in, if it is one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    name: str
    what: str
    memory: float
    """GB, 10⁹ bytes, as the maker names it."""
    kept: float
    """GB that no model may have."""
    why: str
    """Of `kept`."""

    @property
    def usable(self) -> float:
        return self.memory - self.kept


# Nominal sizes. What a driver reports is a little less; `--gpu-memory` takes a figure of your own.
KNOWN = (
    Target(name="gb10", what="DGX Spark, one memory for CPU and GPU", memory=128, kept=8, why="its profile: --reserve-vram 8"),
    Target(name="h100", what="H100", memory=80, kept=10, why="h100-gpu-workers: WORKER_GPU_MEMORY_LIMIT=70G"),
    Target(name="ada-48gb", what="L40S, RTX 6000 Ada", memory=48, kept=1, why="room for the context and a desktop"),
    Target(name="ada-24gb", what="RTX 4090", memory=24, kept=1, why="room for the context and a desktop"),
    Target(name="ada-12gb", what="RTX 4070", memory=12, kept=1, why="its profile, with a display: --reserve-vram 1"),
)  # fmt: skip


def chosen(names: tuple[str, ...], gpu_memory: float | None, kept: float | None) -> list[Target]:
    """The targets of these names (all by default), and a card of `gpu_memory` GB. ConfigError for an unknown name."""
    found = [target for name in names for target in _named(name)]
    if gpu_memory is not None:
        found.insert(
            0,
            Target(name="given", what="--gpu-memory", memory=gpu_memory, kept=0, why="nothing is kept back"),
        )
    if not found:
        found = list(KNOWN)
    if kept is None:
        return found
    return [Target(name=t.name, what=t.what, memory=t.memory, kept=kept, why="--reserve") for t in found]


def _named(name: str) -> list[Target]:
    found = [target for target in KNOWN if target.name == name or target.name.startswith(f"{name}-")]
    if not found:
        known = [target.name for target in KNOWN]
        raise ConfigError(
            f"no target is called {name!r}{nearest(name, known)}", hint=f"there are {', '.join(known)}, ada"
        )
    return found


def here(path: Path = PROFILE) -> str | None:
    """The target of the image that this runs in; None outside of one."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    target = value.get("target") if isinstance(value, dict) else None
    return target if isinstance(target, str) else None
