"""Asks the driver layer, and decides which GPU ComfyUI gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight import device as device_check
from comfyrun.preflight import driver, hostside, version, vram
from comfyrun.preflight.driver import Cuda, Nvml, Smi
from comfyrun.preflight.finding import Finding, warning
from comfyrun.preflight.gpus import complete

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfyrun.preflight.gpus import Gpu
    from comfyrun.preflight.memory import HostMemory
    from comfyrun.preflight.system import System
    from comfyrun.profile import Image


@dataclass(frozen=True, kw_only=True)
class Hardware:
    findings: tuple[Finding, ...] = ()
    device: Gpu | None = None
    visible: str | None = None
    driver: str | None = None


def look(image: Image, system: System, environ: Mapping[str, str], host_memory: HostMemory) -> Hardware:
    """The GPU for an image, in the environment that ComfyUI will have."""
    asked_for = environ.get("CUDA_VISIBLE_DEVICES")
    host = hostside.look(system)
    if not host.given:
        return Hardware(findings=(device_check.without_gpu(image, (), host, asked_for),))
    unified = image.memory == "unified"
    cuda = Cuda(system=system, environ=environ, free=unified)
    answer, failed = driver.first(
        (Nvml(system=system, environ=environ), Smi(system=system, environ=environ), cuda)
    )
    if answer is None:
        return Hardware(findings=(device_check.without_gpu(image, failed, host, asked_for),))
    gpus, speaks = answer.gpus, answer.cuda
    numbered = device_check.needs_order(gpus, asked_for)
    # CUDA's own answer is in its own order; what others say in theirs.
    order = gpus if answer.source == driver.CUDA else None
    if order is None and (numbered or any(_lacks(gpu) for gpu in gpus)):
        second = cuda.ask()
        gpus, speaks = complete(gpus, second.gpus), speaks or second.cuda
        order = (second.gpus or None) if numbered else None
    choice = device_check.choose(image, gpus, asked_for, order)
    findings = list(choice.findings)
    if answer.problem:
        findings.append(warning(device_check.CHECK, f"{answer.source}: {answer.problem}"))
    if choice.device is not None:
        if image.cuda is not None:
            findings.append(version.check(image.cuda, answer.driver or host.driver, speaks))
        findings.append(
            vram.unified(choice.device, host_memory.available) if unified else vram.check(choice.device)
        )
    return Hardware(
        findings=tuple(findings),
        device=choice.device,
        visible=choice.visible,
        driver=answer.driver or host.driver,
    )


def _lacks(gpu: Gpu) -> bool:
    """Whether the driver has to be asked a second time: a GB10's memory is N/A to NVML and nvidia-smi."""
    return gpu.total is None or gpu.capability is None
