"""What the kernel module says of itself in /proc: also in a container that was given no GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight.words import one_line

if TYPE_CHECKING:
    from comfyrun.preflight.system import System

VERSION = "/proc/driver/nvidia/version"
GPUS = "/proc/driver/nvidia/gpus"

# The version stands after the words "Kernel Module", or "Open Kernel Module for aarch64".
_VERSION = re.compile(r"NVRM version:.*?\s(\d{3,4}\.\d{1,4}(?:\.\d{1,4})?)\s")
_MODEL = re.compile(r"^Model:\s*(.+)$", re.MULTILINE)

# A device of the driver, of WSL, or of Jetson: without any of them nothing has to be started to know.
_DEVICES = re.compile(r"nvidia(\d+|ctl)|dxg|nvgpu|nvhost.*")


@dataclass(frozen=True, kw_only=True)
class HostSide:
    driver: str | None
    """The kernel module's version; None when it is not loaded."""
    models: tuple[str, ...]
    given: bool
    """Whether this container has a device to ask."""


def look(system: System) -> HostSide:
    version = _VERSION.search(system.read(VERSION) or "")
    told = (system.read(f"{GPUS}/{bus}/information") or "" for bus in system.names(GPUS)[:64])
    return HostSide(
        driver=version.group(1) if version else None,
        models=tuple(one_line(found.group(1)) for found in map(_MODEL.search, told) if found),
        given=any(_DEVICES.fullmatch(name) for name in system.names("/dev")),
    )
