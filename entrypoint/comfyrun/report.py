"""A Launch for people and for programs. Only what comfyrun decided is shown, never a user's other variables."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from comfyrun.launch import Launch
    from comfyrun.profile import Image


def describe(image: Image) -> str:
    parts = [image.target, f"ComfyUI {image.comfyui}", f"torch {image.torch}"]
    if image.cuda:
        parts.append(f"CUDA {image.cuda}")
    if image.compute_capability:
        parts.append(f"compute capability {image.compute_capability}")
    return ", ".join(parts)


def one_line(launch: Launch) -> str:
    scheme = "https" if launch.tls else "http"
    host = launch.listen[0]
    shown = f"[{host}]" if ":" in host else host
    return (
        f"{describe(launch.image)}; profile {launch.profile}; {scheme}://{shown}:{launch.port}; "
        f"data {launch.workdir}"
    )


def as_text(launch: Launch) -> str:
    rows = [
        ("image", describe(launch.image)),
        ("profile", f"{launch.profile}  [{launch.profile_origin}]"),
        ("workdir", launch.workdir),
        ("command", " ".join(map(shlex.quote, launch.argv[:2]))),
    ]
    lines = [f"{name:<9}{value}" for name, value in rows]
    lines += _aligned((" ".join(map(shlex.quote, o.tokens)), o.origin) for o in launch.options)
    lines.append("environment")
    lines += _aligned((f"{v.name}={shlex.quote(v.value)}", v.origin) for v in launch.variables)
    lines.append("directories")
    lines += _aligned((d.path, f"{d.purpose}: must {d.needs}") for d in launch.directories)
    if launch.notes:
        lines.append("notes")
        lines += [f"  {note}" for note in launch.notes]
    return "\n".join(lines)


def as_json(launch: Launch) -> str:
    image = launch.image
    return json.dumps(
        {
            "schema": 1,
            "image": {
                "target": image.target,
                "comfyui": image.comfyui,
                "torch": image.torch,
                "cuda": image.cuda,
                "compute_capability": image.compute_capability,
                "memory": image.memory,
                "profiles": sorted(image.profiles),
            },
            "profile": {"name": launch.profile, "origin": launch.profile_origin},
            "argv": list(launch.argv),
            "workdir": launch.workdir,
            "listen": list(launch.listen),
            "port": launch.port,
            "options": [
                {"name": o.name, "values": list(o.values), "origin": o.origin} for o in launch.options
            ],
            "environment": [{"name": v.name, "value": v.value, "origin": v.origin} for v in launch.variables],
            "directories": [
                {"path": d.path, "purpose": d.purpose, "needs": d.needs} for d in launch.directories
            ],
            "notes": list(launch.notes),
        },
        indent=2,
    )


def _aligned(pairs: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(pairs)
    width = min(max((len(left) for left, _ in rows), default=0), 72)
    return [f"  {left:<{width}}  [{right}]" for left, right in rows]
