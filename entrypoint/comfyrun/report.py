"""A Launch for people and for programs. Only what comfyrun decided is shown, never a user's other variables."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from comfyrun import redact
from comfyrun import settings as settings_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from comfyrun.launch import Launch
    from comfyrun.profile import Image
    from comfyrun.redact import Redactor

SCHEMA = 1


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
    tier = f" ({launch.tier})" if launch.tier else ""
    return (
        f"{describe(launch.image)}; profile {launch.profile}{tier}; attention {launch.attention}; "
        f"{scheme}://{shown}:{launch.port}; data {launch.workdir}"
    )


def as_text(launch: Launch) -> str:
    hide = redact.of(launch.environment)
    rows = [
        ("image", describe(launch.image)),
        ("profile", f"{launch.profile}  [{launch.profile_origin}]"),
        ("tier", launch.tier or _no_tier(launch)),
        ("attention", launch.attention),
        ("workdir", launch.workdir),
        ("command", _quoted(launch.argv[:2])),
    ]
    lines = [f"{name:<10}{value}" for name, value in rows]
    lines += _aligned((_quoted(hide.tokens(o.tokens)), o.origin) for o in launch.options)
    lines.append("environment")
    lines += _aligned(
        (f"{v.name}={shlex.quote(hide.value(v.name, v.value))}", v.origin) for v in launch.variables
    )
    lines.append("settings")
    lines += _aligned(
        (f"{name}={shlex.quote(value)}", origin) for name, value, origin in _settings(launch, hide)
    )
    lines.append("directories")
    lines += _aligned((d.path, _needs(d.purpose, d.needs, d.given)) for d in launch.directories)
    if launch.files:
        lines.append("files")
        lines += _aligned(
            (f.path, _needs(f.purpose, "made" if f.text else "read", f.origin)) for f in launch.files
        )
    if launch.notes:
        lines.append("notes")
        lines += [f"  {note}" for note in launch.notes]
    return hide.text("\n".join(lines))


def as_json(launch: Launch) -> str:
    image, hide = launch.image, redact.of(launch.environment)
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "image": {
            "target": image.target,
            "comfyui": image.comfyui,
            "torch": image.torch,
            "cuda": image.cuda,
            "compute_capability": image.compute_capability,
            "memory": image.memory,
            "kernels": {k.name: k.version for k in image.kernels},
            "profiles": sorted(image.profiles),
        },
        "profile": {"name": launch.profile, "origin": launch.profile_origin},
        "tier": launch.tier,
        "attention": launch.attention,
        "argv": hide.tokens(launch.argv),
        "workdir": launch.workdir,
        "listen": list(launch.listen),
        "port": launch.port,
        "tls": launch.tls,
        "options": [
            {"name": o.name, "values": hide.tokens((o.name, *o.values))[1:], "origin": o.origin}
            for o in launch.options
        ],
        "environment": [
            {"name": v.name, "value": hide.value(v.name, v.value), "origin": v.origin}
            for v in launch.variables
        ],
        "settings": [
            {"name": name, "value": value, "origin": origin}
            for name, value, origin in _settings(launch, hide)
        ],
        "directories": [
            {"path": d.path, "purpose": d.purpose, "needs": d.needs, "given": d.given}
            for d in launch.directories
        ],
        "files": [
            {"path": f.path, "purpose": f.purpose, "origin": f.origin, "text": f.text} for f in launch.files
        ],
        "notes": list(launch.notes),
    }
    return json.dumps(hide.anything(value), indent=2)


def _settings(launch: Launch, hide: Redactor) -> Iterator[tuple[str, str, str]]:
    """Every COMFY_ variable as it would be written, and where its value comes from."""
    for name in settings_module.SETTINGS:
        match getattr(launch.settings, name):
            case bool(value):
                shown = "on" if value else "off"
            case tuple(values):
                shown = ":".join(values) if name == "models" else _quoted(hide.tokens(values))
            case value:
                shown = value or ""
        yield settings_module.variable(name), shown, launch.settings.origin(name)


def _no_tier(launch: Launch) -> str:
    if launch.profile != "default" or not launch.image.tiers:
        return "none"
    return "none (picked by the memory of the GPU, when there is one)"


def _needs(purpose: str, needs: str, given: str | None) -> str:
    must = {"write": "writable", "exist": "there", "read": "readable", "made": "made at the start"}[needs]
    return f"{purpose}: {must}" + (f", {given}" if given else "")


def _quoted(tokens: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, tokens))


def _aligned(pairs: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(pairs)
    width = min(max((len(left) for left, _ in rows), default=0), 72)
    return [f"  {left:<{width}}  [{right}]" for left, right in rows]
