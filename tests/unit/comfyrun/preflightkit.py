"""What tests of preflight share: images like the real ones, and a whole run on a recorded machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from syntheticui import PROFILE

from comfyrun import profile
from comfyrun.launch import Machine, plan
from comfyrun.layout import Layout
from comfyrun.preflight.gpus import Gpu, Holder
from comfyrun.preflight.run import CHECK, Depth, preflight

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recorded import Recorded

    from comfyrun.flagtable import FlagTable
    from comfyrun.launch import Launch
    from comfyrun.preflight.report import Report
    from comfyrun.profile import Image

GIB = 1 << 30
MIB = 1 << 20
TARGETS = {
    "ada": ("8.9", "linux/amd64", "discrete"),
    "gb10": ("12.1", "linux/arm64", "unified"),
    "h100": ("9.0", "linux/amd64", "discrete"),
}


def image_of(target: str, **changes: Any) -> Image:
    """An image as `imgbuild` bakes its profile.json; `cpu` is one without GPU code."""
    capability, _, memory = TARGETS.get(target, (None, None, None))
    value: dict[str, Any] = {
        **PROFILE,
        "target": target,
        "cuda": "13.0" if capability else None,
        "compute_capability": capability,
        "memory": memory,
        "profiles": {"default": {"flags": [["--use-sage-attention"]] if capability else [["--cpu"]]}},
        "tiers": [],
        "kernels": {},
        "siblings": [
            {"target": t, "compute_capability": c, "platform": p, "tag": f"comfyui:0.33.0-cu130-{t}"}
            for t, (c, p, _) in TARGETS.items()
            if t != target
        ],
    }
    if capability:
        value["kernels"] = {
            name: {"version": "1", "key": f"{name}-{target}", "code": [], "imports": [module]}
            for name, module in (
                ("probe", "imgbuild_probe"),
                ("sageattention", "sageattention"),
                ("flash-attn", "flash_attn"),
            )
        }
    if target == "ada":
        value["tiers"] = [
            {"name": "12gb", "at_least_gb": 0.5, "flags": [], "with_display": [["--reserve-vram", "1"]]},
            {"name": "24gb", "at_least_gb": 20, "flags": []},
            {"name": "48gb", "at_least_gb": 40, "flags": []},
        ]
    return profile.parse({**value, **changes}, "profile.json")


def machine(**changes: Any) -> Machine:
    values = {"uid": os.getuid(), "gid": os.getgid(), "user": "comfy", "home_writable": True}
    return Machine(**{**values, **changes})


def fly(
    image: Image,
    table: FlagTable,
    on: Recorded,
    tmp_path: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    depth: Depth = CHECK,
) -> tuple[Launch, Report]:
    """Preflight of an image on a recorded machine, with volumes under `tmp_path`."""
    environ = {"COMFY_DATA": f"{tmp_path}/data", "COMFY_CACHE": f"{tmp_path}/cache", **(env or {})}
    here = machine()

    def planned(*, memory: float | None, display: bool, dropped: Mapping[str, str]) -> Launch:
        return plan(
            image=image,
            table=table,
            layout=Layout(),
            environ=environ,
            arguments=arguments,
            machine=here,
            memory=memory,
            display=display,
            dropped=dropped,
        )

    return preflight(planned, on.system, Layout(), here, depth)


def gpu(capability: str | None = "8.9", **changes: Any) -> Gpu:
    values = {
        "name": "NVIDIA GeForce RTX 4090",
        "uuid": "GPU-00000001-0000-0000-0000-000000000000",
        "capability": capability,
        "total": 24 * GIB,
        "free": 23 * GIB,
    }
    return Gpu(**{**values, **changes})


def holder(pid: int, used: int | None = None, name: str | None = None) -> Holder:
    return Holder(pid=pid, name=name, used=used)
