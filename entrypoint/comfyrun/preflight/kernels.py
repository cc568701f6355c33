"""Each attention kernel: does it import, and does it agree with plain attention on this GPU?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight import verdicts
from comfyrun.preflight.driver import CHILD
from comfyrun.preflight.finding import Cause, Finding, error, ok, warning
from comfyrun.preflight.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from comfyrun.layout import Layout
    from comfyrun.preflight.gpus import Gpu
    from comfyrun.preflight.system import Asked, System
    from comfyrun.profile import Image

SECONDS = 180
"""torch and ComfyUI from a cold disk, and the first start of Triton's kernels, which are compiled then."""
SCRIPT = CHILD / "attention.py"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A way of attention that ComfyUI can be told to take."""

    kernel: str
    """As the matrix and the labels call it."""
    flag: str
    registered: str
    """ComfyUI's own name of the function."""


# comfy-kitchen is no kernel of the matrix: it comes with ComfyUI's requirements, for every GPU.
BACKENDS = (
    Backend(kernel="sageattention", flag="--use-sage-attention", registered="sage"),
    Backend(kernel="flash-attn", flag="--use-flash-attention", registered="flash"),
    Backend(kernel="comfy-kitchen", flag="--use-ck-attention", registered="comfy_kitchen_int8"),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where kernels are tried."""

    image: Image
    layout: Layout
    system: System
    environ: Mapping[str, str]
    """The server's own."""
    cache: str
    device: Gpu
    driver: str | None

    def identity(self, backend: Backend) -> tuple[str, ...]:
        kernel = self.image.kernel(backend.kernel)
        return (
            backend.kernel,
            kernel.key if kernel else f"torch {self.image.torch}",
            self.device.uuid,
            self.driver or "unknown",
            self.image.comfyui,  # a mask goes through its own function
            hashlib.sha256(SCRIPT.read_bytes()).hexdigest(),
        )


def wanted(flags: Container[str], image: Image, *, every: bool) -> list[Backend]:
    """The kernels to try: those the command line asks for, or every one that the image has."""
    return [b for b in BACKENDS if b.flag in flags or (every and image.kernel(b.kernel) is not None)]


def verdict(bench: Bench, backend: Backend, *, again: bool) -> tuple[Verdict, bool]:
    """What is known of a kernel, trying it where nothing is; and whether that was kept from before.

    `again`: what failed before is tried once more.
    """
    place = verdicts.place(bench.cache, *bench.identity(backend))
    kept = verdicts.load(place)
    if kept is not None and (kept.outcome == "agrees" or not again):
        return kept, True
    found = judge(ask(bench, backend))
    if found.outcome != "unknown":
        verdicts.save(place, found)
    return found, False


def ask(bench: Bench, backend: Backend) -> Asked:
    kernel = bench.image.kernel(backend.kernel)
    return bench.system.run(
        str(bench.layout.python),
        "-PB",  # its own folder is not where modules come from; PYTHONPATH counts as it does for ComfyUI
        str(SCRIPT),
        f"--tree={bench.layout.code}",
        f"--attention={backend.registered}",
        *(f"--import={name}" for name in (kernel.imports if kernel else ())),
        environ=bench.environ,
        timeout=SECONDS,
    )


def judge(asked: Asked) -> Verdict:
    """What the child's end means."""
    if asked.outcome == "late":
        return Verdict(outcome="fails", detail=f"it hangs: {asked.why}", seconds=asked.seconds)
    if asked.outcome == "absent":
        return Verdict(outcome="unknown", detail=asked.why)
    found = verdicts.parse(asked.stdout)
    if found is not None and asked.returncode == 0:
        return found
    what = "it crashes" if asked.returncode < 0 else "it fails"
    why = asked.why if asked.returncode else "its answer cannot be understood"
    return Verdict(outcome="fails", detail=f"{what}: {why}", seconds=asked.seconds)


def finding(backend: Backend, found: Verdict, *, kept: bool, strict: bool) -> tuple[Finding, str | None]:
    """The line for the report, and why the kernel is dropped if it is."""
    check = f"kernel {backend.kernel}"
    if found.outcome == "agrees":
        return ok(
            check, found.detail + (" (known from before)" if kept else f" ({found.seconds:.1f} s)")
        ), None
    if found.outcome == "unknown":
        text = f"{backend.kernel} could not be tried: {found.detail}"
        if strict:
            return error(
                check, Cause.KERNEL, text, "COMFY_STRICT is set: it would be used all the same without"
            ), None
        return warning(check, text, "it is used all the same"), None
    known = " (known from before; comfyrun check tries it again)" if kept else ""
    if strict:
        text = f"{backend.kernel}: {found.detail}{known}"
        return error(
            check, Cause.KERNEL, text, "COMFY_STRICT is set: without it, plain attention takes its place"
        ), None
    text = f"{backend.kernel} is dropped, plain attention (SDPA) takes its place: {found.detail}{known}"
    return warning(check, text, "COMFY_STRICT=1 makes this an error"), found.detail
