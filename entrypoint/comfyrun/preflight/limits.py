"""Shared memory and locked memory: advice only, ComfyUI itself starts with any of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Finding, info, ok
from comfyrun.preflight.vram import gib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfyrun.preflight.system import System

SHM = "/dev/shm"  # noqa: S108  (looked at, never written to)
LITTLE = 1 << 30


def check(system: System) -> Iterator[Finding]:
    space = system.space(SHM)
    if space is None:
        yield info("shm", f"{SHM} cannot be looked at")
    elif space.total < LITTLE:
        yield info(
            "shm",
            f"{SHM} has {gib(space.total)}",
            "nodes that load data in several processes need more: --shm-size 16g",
        )
    else:
        yield ok("shm", f"{SHM} has {gib(space.total)}")
    locked = system.memlock()
    if locked is None:
        yield ok("memlock", "no limit")
    else:
        yield info(
            "memlock",
            f"{gib(locked)} may be locked",
            "nodes that lock memory themselves need more: --ulimit memlock=-1",
        )
