"""Which GPU is used, and whether the image was built for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight import cudaerrors
from comfyrun.preflight.finding import Cause, Finding, error, info, ok, warning
from comfyrun.preflight.gpus import same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfyrun.preflight.gpus import Answer, Gpu
    from comfyrun.preflight.hostside import HostSide
    from comfyrun.profile import Image

CHECK = "device"
GIVE = (
    "give the container the GPU: docker run --gpus all …, podman run --device nvidia.com/gpu=all …",
    "or start without one: serve --cpu",
)
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The GPU that ComfyUI gets."""

    findings: tuple[Finding, ...]
    device: Gpu | None = None
    visible: str | None = None
    """What CUDA_VISIBLE_DEVICES has to be for that; None when it can stay as it is."""


def without_gpu(image: Image, failed: Sequence[Answer], host: HostSide, asked_for: str | None) -> Finding:
    """What to say when no GPU was found. `asked_for`: what CUDA_VISIBLE_DEVICES holds."""
    unsliced = [name for answer in failed for name in answer.unsliced]
    if unsliced:
        return error(
            CHECK,
            Cause.HARDWARE,
            f"{unsliced[0]} is in MIG mode, and this container has no slice of it",
            "on the host, list what there is: nvidia-smi -L; make one: sudo nvidia-smi mig -cgi <profile> -C",
            "give the container a slice: docker run --gpus device=<MIG-UUID> …, "
            "podman run --device nvidia.com/gpu=<MIG-UUID> …",
        )
    if asked_for is not None and hides_all(asked_for):
        return _hidden(asked_for)
    built = f"this image ({image.target}) is built for compute capability {image.compute_capability}"
    if host.given:
        said = "; ".join(f"{answer.source}: {answer.problem}" for answer in failed if answer.problem)
        what, remedies = f"the driver shows no GPU ({said or 'it gives no reason'})", _remedies(failed)
    elif host.driver is None:
        what = "no GPU in this container, and no sign of NVIDIA's driver on this machine"
        remedies = (GIVE[0], "the host needs NVIDIA's driver and nvidia-container-toolkit for that", GIVE[1])
    else:
        models = f" ({', '.join(dict.fromkeys(host.models))})" if host.models else ""
        what = f"no GPU in this container, though the machine has NVIDIA's driver {host.driver}{models}"
        remedies = GIVE
    return error(CHECK, Cause.HARDWARE, f"{what}; {built}", *remedies)


def hides_all(asked_for: str) -> bool:
    first = asked_for.partition(",")[0].strip()
    return not first or first.startswith("-") or first.lower() in ("none", "void", "nodevfiles")


def _hidden(asked_for: str) -> Finding:
    return error(
        CHECK,
        Cause.HARDWARE,
        f"CUDA_VISIBLE_DEVICES={asked_for!r} hides every GPU",
        "leave it unset, or name a GPU in it (its UUID is in nvidia-smi -L)",
        "or start without one: serve --cpu",
    )


def _remedies(failed: Sequence[Answer]) -> tuple[str, ...]:
    if any(answer.late for answer in failed):
        hangs = "the driver hangs: on the host, sudo dmesg | grep -iE 'nvrm|xid' says why; as a rule only a reboot helps"
        return (hangs,)
    if any("mismatch" in (answer.problem or "").lower() for answer in failed):
        return ("the driver was updated while it ran: reboot the host",)
    known = [text for answer in failed if (text := cudaerrors.REMEDIES.get(answer.code or 0))]
    return (*known, "on the host: nvidia-smi, and sudo dmesg | grep -iE 'nvrm|xid'", *GIVE)


def choose(
    image: Image, gpus: Sequence[Gpu], asked_for: str | None, order: Sequence[Gpu] | None = None
) -> Choice:
    """The GPU to use. `asked_for`: CUDA_VISIBLE_DEVICES; `order`: what CUDA itself made of it, where it was asked."""
    if asked_for is None:
        seen = list(gpus)
    elif hides_all(asked_for):
        return Choice(findings=(_hidden(asked_for),))
    else:
        seen = _visible(gpus, asked_for, order)
        if not seen:
            have = ", ".join(f"{g.name} {g.uuid}" for g in gpus)
            return Choice(
                findings=(
                    error(
                        CHECK,
                        Cause.HARDWARE,
                        f"CUDA_VISIBLE_DEVICES={asked_for!r} names no GPU of this container, which has {have}",
                        "leave it unset: the GPU that fits is found by itself",
                    ),
                )
            )
    wanted = image.compute_capability
    fitting = [gpu for gpu in seen if gpu.capability == wanted] or [g for g in seen if g.capability is None]
    if not fitting:
        return Choice(findings=(_wrong(image, seen),))
    if asked_for is not None and seen[0] not in fitting:
        return Choice(findings=(_not_first(image, seen[0], fitting[0], asked_for),))
    # Who names GPUs means the first of them; else it is the one with the most room, and the first of equals.
    device = fitting[0] if asked_for is not None else max(fitting, key=lambda g: (g.free or 0) // _GIB)
    finding = _chosen(device, fitting, seen)
    if device.capability is None:
        finding = warning(
            CHECK, f"{device.name}: its compute capability is not known; the image is built for {wanted}"
        )
    return Choice(
        findings=(finding,),
        device=device,
        visible=_setting(device, fitting, seen) if asked_for is None else None,
    )


def needs_order(gpus: Sequence[Gpu], asked_for: str | None) -> bool:
    """Whether only CUDA can tell which GPUs `asked_for` means: its numbers follow speed, not the bus."""
    if asked_for is None or hides_all(asked_for):
        return False
    numbers = any(word.strip().isdecimal() for word in asked_for.split(","))
    return numbers and len({(gpu.name, gpu.capability) for gpu in gpus}) > 1


def _visible(gpus: Sequence[Gpu], asked_for: str, order: Sequence[Gpu] | None) -> list[Gpu]:
    if order is not None:
        return [gpu for one in order for gpu in gpus if same(gpu.uuid, one.uuid)]
    found: list[Gpu] = []
    for word in map(str.strip, asked_for.split(",")):
        if word.isascii() and word.isdecimal() and len(word) < 5:  # noqa: PLR2004  (no machine has that many)
            matching = list(gpus[int(word) : int(word) + 1])
        else:
            matching = [gpu for gpu in gpus if gpu.uuid.startswith(word)] if word else []
        if not matching:
            break  # so does CUDA: what follows a device that does not exist is not seen
        found += [gpu for gpu in matching[:1] if gpu not in found]
    return found


def _setting(device: Gpu, fitting: Sequence[Gpu], seen: Sequence[Gpu]) -> str | None:
    if len(seen) == 1 or (list(fitting) == list(seen) and device is seen[0] and not device.mig):
        return None
    # CUDA takes one slice at a time; of whole GPUs the others stay visible, for nodes that use several.
    others = [] if device.mig else [gpu for gpu in fitting if gpu is not device and not gpu.mig]
    return ",".join(gpu.uuid for gpu in (device, *others))


def _chosen(device: Gpu, fitting: Sequence[Gpu], seen: Sequence[Gpu]) -> Finding:
    if len(seen) == 1:
        return ok(CHECK, f"{device}, {device.uuid}")
    left = [gpu for gpu in seen if gpu not in fitting]
    if left:
        others = ", ".join(map(str, left))
        return info(
            CHECK, f"{device}, {device.uuid}; left out, since the image is not built for them: {others}"
        )
    return ok(CHECK, f"{device}, {device.uuid}; one of {len(seen)} that fit")


def _not_first(image: Image, first: Gpu, fitting: Gpu, asked_for: str) -> Finding:
    return error(
        CHECK,
        Cause.HARDWARE,
        f"CUDA_VISIBLE_DEVICES={asked_for!r} puts {first} first, and this image ({image.target}) is built for "
        f"compute capability {image.compute_capability}",
        f"CUDA_VISIBLE_DEVICES={fitting.uuid} is {fitting}; unset, the GPU that fits is found by itself",
    )


def _wrong(image: Image, seen: Sequence[Gpu]) -> Finding:
    found = ", ".join(dict.fromkeys(map(str, seen)))
    capabilities = {gpu.capability for gpu in seen}
    fitting = [s for s in image.siblings if s.compute_capability in capabilities]
    none = "no image is built for it yet: add a target with its compute_capability to images/targets, then imgbuild build"
    use = [f"use {s.tag} (target {s.target}, {s.platform})" for s in fitting] or [none]
    return error(
        CHECK,
        Cause.HARDWARE,
        f"this image ({image.target}) is built for compute capability {image.compute_capability}; found: {found}",
        *use,
        "or, slowly, without the GPU: serve --cpu",
    )
