"""The parts of an image, and everything that shapes each of them, by name: what `imgbuild why` compares.

Reads files, nothing else. What the plan holds in words stays in words; folders and scripts are hashes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from imgbuild import __version__
from imgbuild.kernels import tree_hash
from imgbuild.plan import WORK
from imgbuild.render import Renderer
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.plan import Plan
    from imgbuild.project import Project

Parts = dict[str, dict[str, str]]
"""Part → component → value. A package's name has no blank: a component with one is never a package."""

KERNEL = "kernel:"
LAYER = "layer:"
_TEMPLATES = {
    "base": ("base.Dockerfile.j2", "base-setup.sh.j2"),
    LAYER: ("uv.Dockerfile.j2", "venv.Dockerfile.j2", "stages/install.py", "stages/settle.py"),
    WORK: (
        "uv.Dockerfile.j2",
        "work.Dockerfile.j2",
        "stages/install.py",
        "stages/work.py",
        "stages/settle.py",
    ),
    KERNEL: ("kernel.Dockerfile.j2", "stages/install.py", "stages/settle.py", "stages/fatbin.py"),
    "code": ("comfyui.Dockerfile.j2", "stages/code.py", "stages/settle.py"),
    "comfyrun": ("comfyrun.Dockerfile.j2", "stages/code.py", "stages/settle.py"),
    "image": ("Dockerfile.j2", "runtime.Dockerfile.j2"),
}
"""Of each kind of part: what its stage is made from, beside the plan."""


def parts(project: Project, plan: Plan, *, comfyui: Path | None = None) -> Parts:
    """The parts of `plan`'s image, from its bottom to its top.

    `comfyui` is the folder that takes the pinned source's place, just as the build copies it.
    """
    files = Renderer(project.templates).context(plan)

    def stage(kind: str) -> dict[str, str]:
        """What runs, beside what it is given."""
        texts = [files.get(name) or read_text(project.templates / name) for name in _TEMPLATES[kind]]
        return {"stage scripts": _hash(*texts), "stage epoch": str(plan.epoch)}

    uv = {
        "stage uv": " ".join(dict.fromkeys(f"{w.name}=={w.version}" for w in plan.tool)),
        "stage uv files": _hash(*sorted(w.sha256 for w in plan.tool)),
        "stage platform": plan.manylinux,
    }
    found: Parts = {"base": {**_base(plan), **stage("base")}}
    for layer in plan.layers:
        names = {w.name for w in layer.wheels}
        found[f"{LAYER}{layer.name}"] = {
            **{w.name: f"{w.version} {w.sha256[:12]}" for w in layer.wheels},
            "stage edits": _hash(*(str(sorted(e.items())) for e in plan.edits if e["package"] in names)),
            **uv,
            **stage(WORK if layer.name == WORK else LAYER),
        }
    for kernel in plan.kernels:
        found[f"{KERNEL}{kernel.name}"] = {"key": kernel.key, **kernel.components, **uv, **stage(KERNEL)}
    found["comfyui"] = {**_comfyui(plan, comfyui), **stage("code")}
    found["nodes"] = {**{n: tree_hash(project.nodes / n) for n in plan.nodes}, **stage("code")}
    found["comfyrun"] = {
        "entrypoint": tree_hash(project.entrypoint),
        "notices": _hash(files["LICENSE"], files["NOTICE"]),
        **stage("comfyrun"),
    }
    found["profile"] = {
        **_profile(plan),
        "constraints": _hash(files["constraints.txt"]),
        "profile.json": _hash(files["profile.json"]),
        **stage("comfyrun"),
    }
    found["image"] = {"imgbuild": __version__, "title": plan.title, **stage("image")}
    return found


def runs_on(part: str) -> tuple[str, ...]:
    """The parts whose results a part's stage reads: it runs again when one of them changes, whatever it gives."""
    if part in ("base", "image"):
        return ()
    return ("base", "comfyui", "comfyrun") if part == "profile" else ("base",)


def of_stage(stage: str) -> str | None:
    """The part that a stage of the Dockerfile makes."""
    if stage in ("base", "host"):
        return "base"
    for before, part in (("venv-kernel-", KERNEL), ("venv-", LAYER)):
        if stage.startswith(before):
            return part + stage.removeprefix(before)
    return stage if stage in ("comfyui", "nodes", "comfyrun", "profile") else None


def _base(plan: Plan) -> dict[str, str]:
    base = plan.base
    return {
        "name": base.name,
        "suite": base.suite,
        "image": base.image,
        "digest": base.digest,
        "platform": plan.platform,
        "python": base.python,
        "packages": " ".join(base.packages),
        "exclude": " ".join(base.exclude),
    }


def _comfyui(plan: Plan, tree: Path | None) -> dict[str, str]:
    source = plan.source
    found = {"version": source.version, "kind": source.kind, "identity": source.identity}
    if source.kind == "local" and tree is not None:
        names = [p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()]
        found["content"] = tree_hash(tree, names)
    return found


def _profile(plan: Plan) -> dict[str, str]:
    """profile.json, a line of a profile a component."""
    data = plan.profile
    lists = ("kernels", "profiles", "siblings", "tiers")
    found = {k: str(v) for k, v in data.items() if k not in lists}
    found |= {f"kernel {name}": f"{k['version']} {k['key']}" for name, k in data["kernels"].items()}
    found |= {f"on {s['compute_capability']} use": s["tag"] for s in data["siblings"]}
    for tier in data["tiers"]:
        name = f"tier {tier['name']}"
        found[f"{name} at least"] = f"{tier['at_least_gb']:g} GB"
        found |= _flags(name, tier["flags"])
        found |= _flags(f"{name} with a display", tier["with_display"])
    for name, profile in data["profiles"].items():
        found |= {f"{name} {variable}": value for variable, value in profile["environment"].items()}
        found |= _flags(name, profile["flags"])
    return found


def _flags(where: str, flags: list[list[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for flag, *values in flags:
        name, value = f"{where} {flag}", " ".join(values) or "on"
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _hash(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]
