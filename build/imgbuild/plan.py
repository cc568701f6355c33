"""A plan: one target, fully resolved and pinned. Pure, frozen, and the only input of every projection."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from imgbuild import __version__
from imgbuild.errors import ConfigError, DriftError
from imgbuild.kernels import KernelPlan, KernelSource, Toolchain, plan_kernels, toolchain
from imgbuild.lock import Wheel, for_machine, manylinux, read_lock, split
from imgbuild.locking import (
    TOOL_LOCK,
    Pins,
    read_current,
    read_pins,
    read_plain_lock,
    work_lock_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imgbuild.matrix import Base, Flag, Matrix, Target, Variable
    from imgbuild.project import Project

PROFILE_SCHEMA = 1
SourceKind = Literal["git", "local", "fallback"]

# What is inside, for people and for scanners; NOTICE says it in words.
_LICENSES = "GPL-3.0-only AND MIT AND Apache-2.0 AND BSD-3-Clause AND LicenseRef-NVIDIA-CUDA-EULA AND LicenseRef-NVIDIA-cuDNN-SLA"
_LICENSES_CPU = "GPL-3.0-only AND MIT"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where ComfyUI's code comes from."""

    version: str
    kind: SourceKind
    git: str
    commit: str | None
    """For `git`; a checkout and the fallback have none that we vouch for."""
    identity: str
    """What the label says: the commit, the fallback wheel, or 'local'."""


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    name: str
    suite: str
    image: str
    digest: str
    python: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...]


COMFYUI_VENV, WORK_VENV = "/opt/venv", "/opt/work"
WORK = "work"
"""The layer of the queue's libraries."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    name: str
    wheels: tuple[Wheel, ...]
    venv: str = COMFYUI_VENV
    """In which they are installed."""

    @property
    def size(self) -> int:
        return sum(w.size for w in self.wheels)

    def requirements(self) -> str:
        return requirements_text(self.wheels)


@dataclass(frozen=True, kw_only=True)
class Plan:
    name: str
    title: str
    platform: str
    arch: str
    image: str
    epoch: int
    source: Source
    base: BasePlan
    torch: str
    cuda: str | None
    compute_capability: str | None
    memory: str | None
    manylinux: str
    """The target's platform in uv's spelling."""
    layers: tuple[LayerPlan, ...]
    """ComfyUI's from the bottom to the top, then the queue's."""
    edits: tuple[dict[str, Any], ...]
    tool: tuple[Wheel, ...]
    """uv, for the host stages."""
    nodes: tuple[str, ...]
    kernels: tuple[KernelPlan, ...]
    """In the order of the target's file."""
    toolchain: Toolchain | None
    profile: dict[str, Any]
    """What the image's /etc/comfyrun/profile.json holds."""
    reasons: dict[str, Any]
    """Every line of every profile with its reason and evidence class."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Most specific first: `comfyui:0.33.0-cu130-h100`, `comfyui:h100`."""
        return (_full_tag(self.image, self.source, self.cuda, self.name), f"{self.image}:{self.name}")

    @property
    def wheels_size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def packages(self) -> dict[str, str]:
        """What ComfyUI's own venv holds of the locks: versions by name."""
        return {w.name: w.version for x in self.layers if x.venv == COMFYUI_VENV for w in x.wheels}

    @property
    def work_packages(self) -> dict[str, str]:
        """What the venv of `comfyrun worker` holds: versions by name; nothing where the image has none."""
        return {w.name: w.version for x in self.layers if x.venv == WORK_VENV for w in x.wheels}

    @property
    def labels(self) -> dict[str, str]:
        own = {
            "org.opencontainers.image.title": f"ComfyUI for {self.title}",
            "org.opencontainers.image.description": f"ComfyUI {self.source.version} made for {self.title}",
            "org.opencontainers.image.version": self.source.version,
            "org.opencontainers.image.licenses": _LICENSES if self.cuda else _LICENSES_CPU,
            "org.opencontainers.image.base.name": self.base.image,
            "imgbuild.version": __version__,
            "imgbuild.target": self.name,
            "imgbuild.platform": self.platform,
            "imgbuild.compute-capability": self.compute_capability or "none",
            "imgbuild.cuda": self.cuda or "none",
            "imgbuild.torch": self.torch,
            "imgbuild.comfyui": self.source.version,
            "imgbuild.comfyui.source": self.source.kind,
            "imgbuild.comfyui.identity": self.source.identity,
            "imgbuild.kernels": ",".join(k.label for k in self.kernels) or "none",
            # Whether `comfyrun worker` is possible, without a pull.
            "imgbuild.work": f"rq={rq}" if (rq := self.work_packages.get("rq")) else "none",
            "imgbuild.plan": self.key,
        }
        return dict(sorted(own.items()))

    @property
    def key(self) -> str:
        """Hash of the plan: equal plans give equal images."""
        data = asdict(self)
        for kernel in data["kernels"]:  # how it is compiled shapes nothing
            del kernel["budget"], kernel["gb_per_job"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def constraints(self) -> str:
        """Every package of ComfyUI's venv at its version: what a node or a derived image is installed under."""
        pins = [f"{name}=={version}\n" for name, version in self.packages.items()]
        return "".join(sorted([*pins, *(f"{k.distribution}=={k.version}\n" for k in self.kernels)]))

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tags": self.tags,
            "labels": self.labels,
            "key": self.key,
            "wheels_size": self.wheels_size,
        }


def _full_tag(image: str, source: Source, cuda: str | None, target: str) -> str:
    spelled = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    middle = "" if spelled == target else f"{spelled}-"
    version = source.version.replace("+", "-")  # no plus in a tag
    return f"{image}:{version}-{middle}{target}"


def requirements_text(wheels: Iterable[Wheel]) -> str:
    """A hashed requirements file; one package with a file per platform becomes one entry with all hashes."""
    entries: dict[str, list[str]] = {}
    for wheel in sorted(wheels):
        entries.setdefault(f"{wheel.name}=={wheel.version}", []).append(wheel.sha256)
    lines = [f"{name} {' '.join(f'--hash=sha256:{h}' for h in hashes)}" for name, hashes in entries.items()]
    return "\n".join(lines) + "\n" if lines else ""


def pinned_source(matrix: Matrix, pins: Pins) -> Source:
    version = matrix.comfyui.version
    commit = pins.comfyui.get(version)
    if commit is None:
        raise DriftError(f"no commit is pinned for ComfyUI {version}", hint="imgbuild lock")
    return Source(version=version, kind="git", git=matrix.comfyui.git, commit=commit, identity=commit)


def make_plan(
    project: Project,
    matrix: Matrix,
    target: Target,
    *,
    source: Source | None = None,
    kernel_sources: Mapping[str, KernelSource] | None = None,
) -> Plan:
    """Resolve one target against the locks. Reads files, nothing else.

    `source` and `kernel_sources` stand in for what the matrix names.
    """
    pins = read_pins(project)
    source = source or pinned_source(matrix, pins)
    lock = read_lock(project, matrix, target, source.version)
    base = matrix.base_of(target)
    digest = pins.bases.get(target.base)
    if digest is None:
        raise DriftError(f"no digest is pinned for the base {target.base}", hint="imgbuild lock")
    groups = split(lock.wheels, matrix.common.layers)
    edits = matrix.torch_of(target).edits
    if strange := sorted({e.package for e in edits} - {w.name for w in lock.wheels}):
        raise ConfigError(f"edits of torch {target.torch}: {target.name} has no package {', '.join(strange)}")
    if missing := [n for n in matrix.common.nodes if not (project.nodes / n / "__init__.py").is_file()]:
        raise ConfigError(f"images/comfyui.yaml: nodes: there is no {project.nodes / missing[0]}/__init__.py")
    gpu = target.gpu
    kernels = plan_kernels(project, matrix, target, lock, kernel_sources or {})
    return Plan(
        name=target.name,
        title=target.title,
        platform=target.platform,
        arch=target.arch,
        image=matrix.common.image,
        epoch=matrix.common.epoch,
        source=source,
        base=_base_plan(target.base, base, digest),
        torch=target.torch,
        cuda=gpu.cuda if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        memory=gpu.memory if gpu else None,
        manylinux=manylinux(target, matrix),
        layers=(
            *(LayerPlan(name=name, wheels=wheels) for name, wheels in groups.items() if wheels),
            *_work(project, matrix, target),
        ),
        edits=tuple(e.model_dump(mode="json", exclude_none=True) for e in edits),
        tool=read_plain_lock(project, TOOL_LOCK).wheels,
        nodes=matrix.common.nodes,
        kernels=kernels,
        toolchain=toolchain(project, matrix, target),
        profile=_profile_json(target, matrix, source, kernels),
        reasons=_all_reasons(target, matrix, _without(matrix, source)),
    )


def _work(project: Project, matrix: Matrix, target: Target) -> tuple[LayerPlan, ...]:
    """The same for every target of a platform and a Python: their images share it."""
    if not matrix.common.work:
        return ()
    wheels = read_current(project, matrix, work_lock_name(matrix.base_of(target).python)).wheels
    machine = manylinux(target, matrix).partition("-")[0]
    return (LayerPlan(name=WORK, wheels=for_machine(wheels, machine), venv=WORK_VENV),)


def make_plans(project: Project, matrix: Matrix, targets: Sequence[Target]) -> tuple[Plan, ...]:
    return tuple(make_plan(project, matrix, target) for target in targets)


def _base_plan(name: str, base: Base, digest: str) -> BasePlan:
    return BasePlan(
        name=name,
        suite=base.suite,
        image=base.image,
        digest=digest,
        python=base.python,
        packages=tuple(sorted(base.packages)),
        exclude=tuple(base.exclude),
    )


def _profile_json(
    target: Target, matrix: Matrix, source: Source, kernels: Iterable[KernelPlan]
) -> dict[str, Any]:
    gpu = target.gpu
    common = matrix.common.profile
    without = _without(matrix, source)
    return {
        "schema": PROFILE_SCHEMA,
        "target": target.name,
        "comfyui": source.version,
        "torch": target.torch,
        "cuda": gpu.cuda if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "memory": gpu.memory if gpu else None,
        "kernels": {
            # A fallback holds nothing of what is compiled, so there is nothing to import of it.
            k.name: {
                "version": k.version,
                "key": k.key,
                "code": list(k.code),
                "imports": list(k.imports) if k.compiled else [],
            }
            for k in kernels
        },
        # What to use instead on a GPU that this image is not for.
        "siblings": [
            {
                "target": t.name,
                "compute_capability": t.gpu.compute_capability,
                "platform": t.platform,
                "tag": _full_tag(matrix.common.image, source, t.gpu.cuda, t.name),
            }
            for t in sorted(matrix.targets.values(), key=lambda t: t.name)
            if t.gpu is not None and t.name != target.name
        ],
        "nodes": list(matrix.common.nodes),
        "cautions": dict(sorted(without.items())),
        "tiers": [
            {
                "name": t.name,
                "at_least_gb": t.at_least_gb,
                "flags": _words(t.flags, without),
                "with_display": _words(t.with_display, without),
            }
            for t in (gpu.tiers if gpu else ())
        ],
        "profiles": {
            name: {
                "environment": _environment((*common.environment, *profile.environment)),
                "flags": _words((*common.flags, *profile.flags), without),
            }
            for name, profile in sorted(target.profiles.items())
        },
    }


def _without(matrix: Matrix, source: Source) -> dict[str, str]:
    """The flags that this version of ComfyUI does wrongly, with the reason."""
    fallback = matrix.comfyui.fallback
    return {f.flag: f.why for f in fallback.without} if source.version == fallback.version else {}


def _words(flags: Iterable[Flag], without: Iterable[str] = ()) -> list[list[str]]:
    return [[f.flag] if f.value is None else [f.flag, f.value] for f in flags if f.flag not in without]


def _environment(variables: Iterable[Variable]) -> dict[str, str]:
    return {v.name: v.value for v in variables}


def _all_reasons(target: Target, matrix: Matrix, without: Mapping[str, str]) -> dict[str, Any]:
    common = matrix.common.profile
    found: dict[str, Any] = {
        name: [
            *_reasons(common.environment, common.flags, without),
            *_reasons(profile.environment, profile.flags, without),
        ]
        for name, profile in sorted(target.profiles.items())
    }
    for tier in target.gpu.tiers if target.gpu else ():
        rows = _reasons((), tier.flags, without)
        shown = _reasons((), tier.with_display, without)
        rows += [{**row, "line": f"{row['line']} (with a display)"} for row in shown]
        if rows:
            found[f"default, from {tier.at_least_gb:g} GB"] = rows
    return found


def _reasons(
    environment: Iterable[Variable], flags: Iterable[Flag], without: Mapping[str, str]
) -> list[dict[str, str]]:
    rows = [{"line": f"{v.name}={v.value}", "why": v.why, "evidence": v.evidence} for v in environment]
    for f in flags:
        line = " ".join(filter(None, (f.flag, f.value)))
        if f.flag in without:
            rows.append({"line": f"without {line}", "why": without[f.flag], "evidence": f.evidence})
        else:
            rows.append({"line": line, "why": f.why, "evidence": f.evidence})
    return rows
