"""The driver layer: three ways to ask which GPUs there are, each in a process of its own with a time limit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from comfyrun.preflight import gpus, smi
from comfyrun.preflight.gpus import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfyrun.preflight.system import Asked, System

CHILD = Path(__file__).parent / "child"

# Seconds. Without the persistence daemon the driver wakes each GPU up first, which takes one or two.
NVML, SMI, CUDA = "NVML", "nvidia-smi", "CUDA"

NVML_SECONDS = 20
SMI_SECONDS = 20
CUDA_SECONDS = 30


class Driver(Protocol):
    def ask(self) -> Answer:
        """What it knows; an answer without GPUs says why in `problem`. Never raises."""


@dataclass(frozen=True, kw_only=True)
class Nvml:
    """NVIDIA's management library, which is what nvidia-smi itself asks."""

    system: System
    environ: Mapping[str, str]

    def ask(self) -> Answer:
        return _child(self.system, NVML, "nvml.py", environ=self.environ, timeout=NVML_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Smi:
    system: System
    environ: Mapping[str, str]

    def ask(self) -> Answer:
        asked = self._run(smi.GPUS)
        if not asked.ok:
            return Answer(source=SMI, problem=asked.why, late=asked.outcome == "late")
        answer = smi.gpus(asked.stdout)
        if answer.unsliced:
            answer = smi.with_slices(answer, self._run(smi.SLICES).stdout)
        holders = self._run(smi.HOLDERS)
        return smi.with_holders(answer, holders.stdout) if holders.ok else answer

    def _run(self, command: tuple[str, ...]) -> Asked:
        return self.system.run(*command, environ=self.environ, timeout=SMI_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """The CUDA driver itself: what it would use, in its own order, under this environment."""

    system: System
    environ: Mapping[str, str]
    free: bool = False
    """Also how much the first GPU has free, which takes a context."""

    def ask(self) -> Answer:
        options = ("--free",) if self.free else ()
        return _child(self.system, CUDA, "cuda.py", *options, environ=self.environ, timeout=CUDA_SECONDS)


def _child(
    system: System, source: str, script: str, *options: str, environ: Mapping[str, str], timeout: float
) -> Answer:
    asked = system.run(
        sys.executable, "-ISB", str(CHILD / script), *options, environ=environ, timeout=timeout
    )
    if not asked.ok:
        return Answer(source=source, problem=asked.why, late=asked.outcome == "late")
    return gpus.read(source, asked.stdout)


def first(drivers: Iterable[Driver]) -> tuple[Answer | None, tuple[Answer, ...]]:
    """The first answer that has a GPU, if any has, and those before it."""
    failed: list[Answer] = []
    for driver in drivers:
        # What nvidia-smi waits for is the same library: it would hang as long again.
        if isinstance(driver, Smi) and failed and failed[-1].late:
            continue
        answer = driver.ask()
        if answer.gpus:
            return answer, tuple(failed)
        failed.append(answer)
        if answer.unsliced:
            break  # there is a GPU, and CUDA cannot use it
    return None, tuple(failed)
