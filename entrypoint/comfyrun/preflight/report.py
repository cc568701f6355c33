"""All that was found, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfyrun.errors import HardwareError, KernelError, MachineError
from comfyrun.preflight.finding import Cause, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfyrun.errors import ComfyrunError
    from comfyrun.preflight.gpus import Gpu
    from comfyrun.preflight.memory import HostMemory
    from comfyrun.redact import Redactor

_ERRORS: Mapping[Cause, type[ComfyrunError]] = {
    # The first of them that there is gives the exit code: nothing else matters on the wrong hardware.
    Cause.HARDWARE: HardwareError,
    Cause.KERNEL: KernelError,
    Cause.MACHINE: MachineError,
}
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Report:
    target: str
    findings: tuple[Finding, ...]
    device: Gpu | None = None
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES as it has to be set; None when it stays as it is."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Kernel → why plain attention takes its place."""
    memory: HostMemory | None = None
    seconds: float = 0.0

    @property
    def gib(self) -> float | None:
        """The GPU's memory, by which a tier is picked."""
        return None if self.device is None or self.device.total is None else self.device.total / _GIB

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    @property
    def failure(self) -> ComfyrunError | None:
        """What a start is refused with."""
        causes = {f.cause for f in self.errors}
        for cause, kind in _ERRORS.items():
            if cause in causes:
                return kind(*(f.line for f in self.errors))
        return None

    @property
    def exit_code(self) -> int:
        failure = self.failure
        return failure.exit_code if failure else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a start says: warnings, a line each. Advice stays with `comfyrun check`, and of a kernel that is
        dropped the Launch tells.
        """
        told = {f"kernel {name}" for name in self.dropped}
        warnings = (f for f in self.findings if f.severity is Severity.WARNING)
        return tuple(f.line for f in warnings if f.check not in told)


def as_text(report: Report) -> str:
    width = max((len(f.check) for f in report.findings), default=0)
    lines = []
    for finding in report.findings:
        lines.append(f"{finding.severity.value:<8} {finding.check:<{width}}  {finding.message}")
        lines += [f"{'':<8} {'':<{width}}  → {remedy}" for remedy in finding.remedy]
    lines.append(_summary(report))
    return "\n".join(lines)


def _summary(report: Report) -> str:
    errors = len(report.errors)
    warnings = sum(f.severity is Severity.WARNING for f in report.findings)
    if errors:
        verdict = f"{_count(errors, 'error')}: it would not start (exit code {report.exit_code})"
    else:
        verdict = "it can start" + (f", with {_count(warnings, 'warning')}" if warnings else "")
    return f"{report.target}: {verdict}; checked in {report.seconds:.2f} s"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def as_json(report: Report, hide: Redactor | None = None) -> str:
    value = _value(report)
    return json.dumps(hide.anything(value) if hide else value, indent=2)


def _value(report: Report) -> dict[str, object]:
    memory = report.memory
    return {
        "schema": 1,
        "target": report.target,
        "ok": not report.errors,
        "exit_code": report.exit_code,
        "seconds": round(report.seconds, 3),
        "device": None if report.device is None else _device(report.device),
        "cuda_visible_devices": report.visible,
        "dropped": dict(report.dropped),
        "memory": None
        if memory is None
        else {
            "total": memory.total,
            "available": memory.available,
            "swap": memory.swap,
            "limit": memory.limit,
        },
        "findings": [_finding(f) for f in report.findings],
    }


def _device(gpu: Gpu) -> dict[str, object]:
    return {
        "name": gpu.name,
        "uuid": gpu.uuid,
        "compute_capability": gpu.capability,
        "total": gpu.total,
        "free": gpu.free,
        "mig": gpu.mig,
        "display": gpu.display,
        "holders": [{"pid": h.pid, "name": h.name, "used": h.used} for h in gpu.holders],
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "severity": finding.severity.value,
        "cause": None if finding.cause is None else finding.cause.value,
        "message": finding.message,
        "remedy": list(finding.remedy),
    }
