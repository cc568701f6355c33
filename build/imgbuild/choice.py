"""Which image runs on this machine's GPU, out of the images' labels alone. Pure.

An image fits a GPU when its platform is the machine's, it was made for exactly this compute capability (its
entrypoint refuses any other), every compiled kernel that its label names has code that runs on it, and the driver
speaks its CUDA. Each candidate that does not fit says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild import fatbin
from imgbuild.errors import VerificationError
from imgbuild.verify import LabelledKernel, parse_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.hardware import Gpu, Hardware

DRIVERS: Mapping[int, int] = {11: 450, 12: 525, 13: 580}
"""CUDA's major version → the driver branch that came with it. A newer minor version runs on that branch too (CUDA's
minor version compatibility), an older branch runs nothing of that major version."""
NONE = "none"
"""What the label says of an image without GPU code."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One image, as its labels describe it."""

    target: str
    reference: str
    platform: str | None
    capability: str | None
    """"12.1"; `none` for an image without GPU code; None where no label says it."""
    cuda: str | None
    kernels: tuple[LabelledKernel, ...] = ()
    problem: str | None = None
    """Why its labels cannot be judged, or why there is no image."""

    @property
    def has_gpu_code(self) -> bool:
        return self.capability not in (None, NONE)


def candidate(
    target: str, reference: str, labels: Mapping[str, str], *, platform: str | None = None
) -> Candidate:
    """A candidate out of an image's labels; `platform` is what the image's own configuration says."""
    kernels: tuple[LabelledKernel, ...] = ()
    problem = None
    own = labels.get("imgbuild.target")
    said = labels.get("imgbuild.platform")
    capability = labels.get("imgbuild.compute-capability")
    if own is None or capability is None:
        lacking = "imgbuild.target" if own is None else "imgbuild.compute-capability"
        problem = f"it has no label {lacking}: it was not made by imgbuild, or lost its labels"
    elif own != target:
        problem = f"its label imgbuild.target says {own}: a wrong image was pushed under this name"
    elif said is not None and platform is not None and said != platform:
        problem = f"its label imgbuild.platform says {said}, and the image is for {platform}"
    else:
        try:
            kernels = parse_kernels(labels.get("imgbuild.kernels", NONE))
            if capability != NONE:
                fatbin.split_capability(capability)
        except (VerificationError, fatbin.FatbinError) as error:
            problem = str(error)
    cuda = labels.get("imgbuild.cuda")
    return Candidate(
        target=target,
        reference=reference,
        platform=platform or said,
        capability=capability,
        cuda=None if cuda == NONE else cuda,
        kernels=kernels,
        problem=problem,
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one candidate runs here, and why."""

    candidate: Candidate
    runs: bool
    """Whether it can be used here at all."""
    why: str
    fits: bool = False
    """Whether it is what this machine should get: an image without GPU code runs beside a GPU, and wastes it."""
    gpu: Gpu | None = None
    """The GPU that it runs on."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`chosen` is None when nothing fits or several fit different GPUs: `advice` then says what to do."""

    chosen: Verdict | None
    verdicts: tuple[Verdict, ...]
    what: str = ""
    """What is the matter, in one sentence, when nothing was chosen."""
    advice: str = ""


def judge(image: Candidate, hardware: Hardware, platform: str) -> Verdict:
    """Hold one image against the machine: the first GPU that it fits, or why it fits none."""
    if image.problem is not None:
        return Verdict(candidate=image, runs=False, why=image.problem)
    if image.platform not in (None, platform):
        return Verdict(
            candidate=image, runs=False, why=f"it is for {image.platform}, this machine is {platform}"
        )
    if not image.has_gpu_code:
        why = "it has no GPU code, and runs on the CPU"
        return Verdict(candidate=image, runs=True, fits=not hardware.gpus, why=why)
    if not hardware.gpus:
        return Verdict(candidate=image, runs=False, why=f"it needs a GPU of {image.capability}")
    refused: dict[str, None] = {}
    for gpu in hardware.gpus:
        why_not = refusal(image, gpu, hardware)
        if why_not is None:
            return Verdict(candidate=image, runs=True, fits=True, gpu=gpu, why=_praise(image, gpu))
        refused[why_not] = None
    return Verdict(candidate=image, runs=False, why="; ".join(refused))


def refusal(image: Candidate, gpu: Gpu, hardware: Hardware) -> str | None:
    """Why an image with GPU code does not run on a GPU; None when it does."""
    if gpu.capability is None:
        return f"the compute capability of {gpu.name} is not known"
    if gpu.capability != image.capability:
        return f"it is made for {image.capability}, and {gpu.name} is {gpu.capability}"
    for kernel in image.kernels:
        if kernel.compiled and not any(
            fatbin.runs(code, gpu.capability, "elf") == "yes" for code in kernel.code
        ):
            return f"its {kernel.name} holds {'+'.join(kernel.code)}, which does not run on {gpu.capability}"
    return driver_refusal(image.cuda, hardware)


def driver_refusal(cuda: str | None, hardware: Hardware) -> str | None:
    """Why the driver cannot run a CUDA ("13.0"); None when it can, or when nobody can say."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", cuda or "")
    if found is None:
        return None
    major = int(found[1])
    branch = DRIVERS.get(major)
    needs = f"CUDA {cuda} needs {branch} or newer" if branch else f"the image needs CUDA {cuda}"
    if hardware.cuda is not None:
        if hardware.cuda[0] < major:
            speaks = f"{hardware.cuda[0]}.{hardware.cuda[1]}"
            return f"driver {hardware.driver or 'of this machine'} speaks CUDA {speaks}, {needs}"
        return None
    if hardware.driver is not None and branch is not None and int(hardware.driver.split(".")[0]) < branch:
        return f"driver {hardware.driver} is too old: {needs}"
    return None


def _praise(image: Candidate, gpu: Gpu) -> str:
    codes = ", ".join(f"{k.name} {'+'.join(k.code)}" for k in image.kernels if k.compiled)
    return f"made for {image.capability}, which {gpu.name} is" + (f"; {codes}" if codes else "")


def choose(images: Sequence[Candidate], hardware: Hardware, platform: str) -> Choice:
    """The image for this machine. `platform`: its own, "linux/arm64"."""
    verdicts = tuple(judge(image, hardware, platform) for image in images)
    if not hardware.gpus:
        what, advice = _without_gpu(hardware)
        return Choice(chosen=None, verdicts=verdicts, what=what, advice=advice)
    fitting = [v for v in verdicts if v.fits]
    # Each GPU of a kind counts once: four H100 are one question.
    kinds = {v.candidate.capability for v in fitting}
    if len(kinds) == 1:
        return Choice(chosen=fitting[0], verdicts=verdicts)
    if fitting:
        names = " or ".join(f"--target {v.candidate.target} for {v.gpu}" for v in fitting)
        return Choice(
            chosen=None,
            verdicts=verdicts,
            what="this machine has GPUs of several kinds, and an image runs on one kind",
            advice=f"name one: {names}",
        )
    what, advice = _nothing_fits(verdicts, hardware, platform)
    return Choice(chosen=None, verdicts=verdicts, what=what, advice=advice)


def _without_gpu(hardware: Hardware) -> tuple[str, str]:
    name_one = "--target cpu takes the image that needs none, --target NAME one for another machine"
    if hardware.unsliced:
        return (
            f"{hardware.unsliced[0]} is in MIG mode and has no slice that could be used",
            f"make one: sudo nvidia-smi mig -cgi <profile> -C (nvidia-smi mig -lgip lists profiles); {name_one}",
        )
    if hardware.late:
        return (
            f"no GPU can be seen: {hardware.problem}",
            f"the driver hangs: sudo dmesg | grep -iE 'nvrm|xid' says why; {name_one}",
        )
    if hardware.problem:
        return (
            f"no GPU can be seen: {hardware.problem}",
            f"nvidia-smi, and sudo dmesg | grep -iE 'nvrm|xid'; {name_one}",
        )
    return "this machine has no NVIDIA GPU, or no driver for it", name_one


def _nothing_fits(verdicts: Sequence[Verdict], hardware: Hardware, platform: str) -> tuple[str, str]:
    seen = ", ".join(dict.fromkeys(str(g) for g in hardware.gpus))
    for verdict in verdicts:  # made for this GPU, and yet not to be used
        image = verdict.candidate
        same = any(g.capability == image.capability for g in hardware.gpus)
        if same and image.problem is None and image.platform == platform:
            too_old = driver_refusal(image.cuda, hardware)
            advice = (
                f"install NVIDIA's driver {DRIVERS.get(int((image.cuda or '0').split('.')[0]), '')} or newer, and reboot"
                if too_old
                else f"imgbuild verify {image.reference} says what it holds"
            )
            return f"{image.target} is made for {seen}, but {verdict.why}", advice
    near = nearest_capability(verdicts, hardware)
    other = "to run it without the GPU: --target cpu"
    wanted = next((g.capability for g in hardware.gpus if g.capability), None)
    if near is None or wanted is None:
        return f"no image is made for {seen}", other
    same = near.capability == wanted
    hint = (
        f"the nearest is {near.target} ({near.capability}, {near.platform})"
        if same
        else f"the nearest is {near.target} ({near.capability}), and its code does not run on {wanted}"
    )
    make = (
        f'a file images/targets/NAME.yaml with compute_capability: "{wanted}" and platform: {platform}, then '
        f"imgbuild build --target NAME, makes one; {other}"
    )
    return f"no image is made for {seen} on {platform}; {hint}", make


def nearest_capability(verdicts: Sequence[Verdict], hardware: Hardware) -> Candidate | None:
    """The image with GPU code whose compute capability is nearest to a GPU of this machine."""
    wanted = next((fatbin.split_capability(g.capability) for g in hardware.gpus if g.capability), None)
    known = [v.candidate for v in verdicts if v.candidate.has_gpu_code and v.candidate.problem is None]
    if wanted is None or not known:
        return None

    def distance(image: Candidate) -> tuple[int, int]:
        major, minor = fatbin.split_capability(image.capability or "")
        return abs(major - wanted[0]), abs(minor - wanted[1])

    return min(known, key=distance)
