"""The probe kernel: code compiled for exactly the image's GPU, run on the GPU at hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from comfyrun.preflight import cudaerrors
from comfyrun.preflight.finding import Cause, Finding, error, ok
from comfyrun.preflight.gpus import number
from comfyrun.preflight.words import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfyrun.preflight.system import Asked, System

CHECK = "probe"
KERNEL = "probe"
MODULE = "imgbuild_probe"
SECONDS = 60
"""CUDA starts in well under one; on a machine with many GPUs that are asleep it takes longer."""


def ask(system: System, python: str, environ: Mapping[str, str]) -> Asked:
    # Isolated: what a node put on PYTHONPATH is not what is proven here.
    return system.run(python, "-IB", "-m", MODULE, environ=environ, timeout=SECONDS)


def judge(asked: Asked) -> Finding:
    """What the probe's end means."""
    if asked.outcome == "absent" or f"No module named {MODULE}" in asked.stderr:
        return error(
            CHECK,
            Cause.MACHINE,
            f"the probe kernel is not there: {asked.why}",
            "the image is damaged: pull or build it again",
        )
    if asked.outcome == "late":
        return error(
            CHECK,
            Cause.HARDWARE,
            f"the probe kernel hangs: {asked.why}",
            "on the host, sudo dmesg | grep -iE 'nvrm|xid' says why; as a rule only a reboot helps",
        )
    match _object(asked.stdout):
        case {"ok": True}:
            return ok(CHECK, f"compiled code runs and computes right ({asked.seconds:.2f} s)")
        case {"ok": False, "error": said, **more}:
            code = number(more.get("code"))
            text = f"CUDA refuses the probe kernel: {one_line(said)}" + (f" (error {code})" if code else "")
            return error(CHECK, cudaerrors.cause(code), text, cudaerrors.remedy(code))
        case {"ok": False, "actual": actual, "expected": expected}:
            return error(
                CHECK,
                Cause.HARDWARE,
                f"the GPU computes wrongly: {one_line(actual)} instead of {one_line(expected)}",
                "it is overclocked, too hot or broken: nvidia-smi -q, and try another one",
            )
        case _:
            return error(
                CHECK,
                Cause.HARDWARE,
                f"the probe kernel fails: {asked.why if not asked.ok else 'its answer cannot be understood'}",
                cudaerrors.remedy(None),
            )


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
