"""How the ComfyUIs of one container share its GPUs, and what bounds the memory of each. Pure.

MIG          a slice each: everything is bounded, by the hardware
GPUs         one each: nothing is shared
MPS          the daemon refuses what goes beyond a process' share
cooperative  each ComfyUI plans with its share alone; nothing enforces it
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from comfyrun.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfyrun.preflight.gpus import Gpu

Mechanism = Literal["none", "MIG", "GPUs", "MPS", "cooperative"]

MPS_FOLDER = "/tmp/nvidia-mps"  # noqa: S108  (where its daemon has its pipe, unless CUDA_MPS_PIPE_DIRECTORY says else)
GIB = 1 << 30
_LEAST = 2 * GIB  # no ComfyUI does anything in less
_LIMIT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmgt]i?b?|b)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MOST = 16


@dataclass(frozen=True, kw_only=True)
class Share:
    """One ComfyUI's part."""

    mechanism: Mechanism
    bytes: int | None
    """Of GPU memory; None where nothing bounds it, or nobody knows how much there is."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it is started with, over what the container has."""
    words: str = ""
    """What bounds it, for a person."""


def count(text: str) -> int:
    """NUM_WORKERS. Raises ValueError."""
    if not text:
        return 1
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise ValueError(f"{text!r} is not a number from 1 to {_MOST}")
    return int(text)


def limit(text: str, total: int | None) -> int | None:
    """WORKER_GPU_MEMORY_LIMIT in bytes: `70G` (as nvidia-smi and Docker count, 1024³), `70GiB`, `90%`. ValueError."""
    if not text:
        return None
    found = _LIMIT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size, such as 70G or 90%")
    number, unit = float(found[1]), (found[2] or "b").lower()
    if unit != "%":
        return int(number * _UNITS[unit[0]])
    if not 0 < number <= 100:  # noqa: PLR2004
        raise ValueError(f"{text!r}: a share is more than 0 % and at most 100 %")
    return None if total is None else int(total * number / 100)


def plan(
    workers: int, wanted: str, gpus: Sequence[Gpu], environ: Mapping[str, str], *, mps: bool
) -> tuple[Share, ...]:
    """A share for each of so many ComfyUIs; `gpus` are those that are visible. Raises ConfigError."""
    visible = _chosen(gpus, environ)
    slices = [gpu for gpu in visible if gpu.mig]
    if slices and (workers > 1 or len(slices) > 1):
        return _each_its_own(workers, wanted, slices, "MIG")
    if workers > 1 and len(visible) >= workers:
        return _each_its_own(workers, wanted, visible, "GPUs")
    if workers > 1 and len(visible) > 1:
        raise ConfigError(
            f"NUM_WORKERS={workers}, and {len(visible)} GPUs are visible: give one GPU, or as many as workers "
            "(docker run --gpus device=…)"
        )
    gpu = visible[0] if visible else None
    total = gpu.total if gpu else None
    bound = _limit(wanted, total)
    if workers == 1 and bound is None:
        return (Share(mechanism="none", bytes=total, words="nothing: it has the GPU to itself"),)
    if gpu is None or total is None:
        what = "there is no GPU here" if gpu is None else "its driver does not say how much memory it has"
        return (Share(mechanism="none", bytes=None, words=f"nothing: {what}"),) * workers
    part = (total if bound is None else min(bound, total)) // workers
    if part < _LEAST:
        raise ConfigError(
            f"{_size(part)} of GPU memory for each of {workers} workers ({gpu.name}, {_size(total)}"
            f"{f', WORKER_GPU_MEMORY_LIMIT={wanted}' if wanted else ''}): too little; lower NUM_WORKERS"
        )
    return (_part(part, total, environ, mps=mps),) * workers


def _part(part: int, total: int, environ: Mapping[str, str], *, mps: bool) -> Share:
    if mps:
        megabytes = part // (1 << 20)
        return Share(
            mechanism="MPS",
            bytes=part,
            environment={"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={megabytes}M"},
            words=f"MPS: the driver refuses it more than {_size(part)} of {_size(total)}",
        )
    if environ.get("COMFY_RESERVE_VRAM"):
        words = f"COMFY_RESERVE_VRAM={environ['COMFY_RESERVE_VRAM']}, which somebody has set"
        return Share(mechanism="cooperative", bytes=None, words=words)
    reserved = (total - part) / GIB
    return Share(
        mechanism="cooperative",
        bytes=part,
        environment={"COMFY_RESERVE_VRAM": f"{reserved:.1f}"},
        words=(
            f"ComfyUI itself, which keeps {reserved:.1f} GiB of {_size(total)} free for others (--reserve-vram); "
            "nothing enforces it"
        ),
    )


def _each_its_own(
    workers: int, wanted: str, gpus: Sequence[Gpu], mechanism: Literal["MIG", "GPUs"]
) -> tuple[Share, ...]:
    kind = "MIG slices" if mechanism == "MIG" else "GPUs"
    if workers > len(gpus):
        raise ConfigError(
            f"NUM_WORKERS={workers}, and {len(gpus)} {kind} are visible: at most one worker a slice (nvidia-smi -L)"
        )
    shares = []
    for gpu in gpus[:workers]:
        bound = _limit(wanted, gpu.total)
        environment = {"CUDA_VISIBLE_DEVICES": gpu.uuid}
        words = f"{'the slice' if mechanism == 'MIG' else 'the GPU'} {gpu.uuid}, {gpu.name}"
        own = gpu.total
        if bound is not None and gpu.total is not None and bound < gpu.total:
            environment["COMFY_RESERVE_VRAM"] = f"{(gpu.total - bound) / GIB:.1f}"
            words += f"; and ComfyUI itself, which keeps to {_size(bound)} of it (--reserve-vram)"
            own = bound
        shares.append(Share(mechanism=mechanism, bytes=own, environment=environment, words=words))
    return tuple(shares)


def _chosen(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, in its order; all where it is not set."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or named in ("", "all"):
        return list(gpus)
    found = []
    for word in named.split(","):
        by_uuid = [gpu for gpu in gpus if gpu.uuid.startswith(word)]
        by_index = [gpus[int(word)]] if word.isdecimal() and int(word) < len(gpus) else []
        found += by_uuid[:1] or by_index
    return found


def _limit(text: str, total: int | None) -> int | None:
    try:
        return limit(text, total)
    except ValueError as error:
        raise ConfigError(f"WORKER_GPU_MEMORY_LIMIT: {error}") from None


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB"
