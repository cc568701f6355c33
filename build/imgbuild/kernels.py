"""A kernel's recipe for one target: how its architecture is spelled, what its build is told, and its key.

Pure: the matrix, the locks and a few files of the project in, a value out.
The key is computed here and nowhere else, for writing and for reading.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from imgbuild.errors import ConfigError
from imgbuild.locking import kernel_lock_name, kernel_tools_lock_name, read_current, toolchain_lock_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from imgbuild.lock import Lock, Wheel
    from imgbuild.matrix import Kernel, Matrix, SourceEdit, Spelling, Target, Torch
    from imgbuild.project import Project

Kind = Literal["git", "sdist", "path", "tree", "fallback"]
"""`tree`: a checkout that is not the pinned commit; `fallback`: a wheel in which nothing is compiled."""

KERNEL_EPOCH = 315532800
"""1980-01-01, a zip's first day: the time stamps in a kernel's wheel. An image's own would change them with each
release of ComfyUI. They are no part of the key: nothing that runs depends on them."""

SHAPING = ("source.py", "toolchain.py", "compile.py")
"""The stage scripts that shape a wheel; the others only measure, check and install it."""


@dataclass(frozen=True, kw_only=True)
class KernelSource:
    """Where a kernel's source comes from, for one build."""

    kind: Kind
    identity: str
    """A commit, or a hash of the content: equal identities are equal sources."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """What the kernels of one target are compiled with."""

    triplet: str
    """GNU's name of the target's architecture: 'aarch64-linux-gnu'."""
    gcc: str
    cuda: str
    compiler: tuple[Wheel, ...]
    """nvcc and what belongs to it, for both architectures of building machines."""
    tools: tuple[Wheel, ...]
    """Python packages of the compile stages, for both architectures of targets."""


@dataclass(frozen=True, kw_only=True)
class KernelPlan:
    """One kernel of one target."""

    name: str
    version: str
    distribution: str
    license: str
    kind: Kind
    identity: str
    git: str | None
    path: str | None
    """Of a source in the project, relative to its root."""
    wheels: tuple[Wheel, ...]
    """The pinned file of an sdist or of a fallback."""
    capability: str
    value: str
    """The compute capability in the project's own words."""
    code: tuple[str, ...]
    """What every binary of the wheel holds, and nothing else."""
    variable: str
    environment: dict[str, str]
    flags: tuple[str, ...]
    edits: tuple[dict[str, Any], ...]
    budget: dict[str, str]
    gb_per_job: float
    imports: tuple[str, ...]
    key: str
    components: dict[str, str]
    """Everything that shapes the wheel, by name: the key is their hash."""

    @property
    def compiled(self) -> bool:
        return self.kind != "fallback"

    @property
    def label(self) -> str:
        """`sageattention=2.2.0@0123456789abcdef:sm_121a`."""
        key = self.key if self.compiled else "fallback"
        return f"{self.name}={self.version}@{key}:{'+'.join(self.code) or 'none'}"

    def recipe(self) -> dict[str, Any]:
        """What the source and compile stages read, and what proves the result; no budget is in it."""
        return {
            "name": self.name,
            "environment": {**self.environment, self.variable: self.value},
            "flags": self.flags,
            "edits": self.edits,
            "imports": self.imports,
            "code": self.code,
            "capability": self.capability,
        }

    def requirements(self) -> str:
        return "".join(f"{w.requirement}\n" for w in self.wheels)


def spell(name: str, kernel: Kernel, capability: str) -> Spelling:
    """A compute capability ("12.1") in a project's own words; ConfigError for one that it does not know."""
    found = kernel.spelling.get(capability)
    if found is None:
        known = ", ".join(sorted(kernel.spelling, key=lambda c: tuple(map(int, c.split(".")))))
        raise ConfigError(
            f"{name} has no spelling for compute capability {capability}; it has for: {known}",
            hint=f"images/comfyui.yaml: kernels.{name}.spelling; or leave {name} out of the target",
        )
    return found


def pinned_kernel_source(project: Project, matrix: Matrix, name: str) -> KernelSource:
    """The source that the recipe names."""
    kernel = matrix.common.kernels[name]
    source = kernel.source
    if source.commit is not None:
        return KernelSource(kind="git", identity=source.commit)
    if source.sdist is not None:
        lock = read_current(project, matrix, kernel_lock_name(name, kernel.version))
        return KernelSource(kind="sdist", identity=f"sha256:{lock.wheels[0].sha256}")
    folder = project.root / str(source.path)
    if not folder.is_dir():
        raise ConfigError(f"images/comfyui.yaml: kernels.{name}.source.path: there is no folder {folder}")
    return KernelSource(kind="path", identity=tree_hash(folder))


def tree_hash(folder: Path, names: Iterable[str] | None = None) -> str:
    """Hash of names, contents and executable bits; without Python's and an editor's leavings."""
    if names is None:
        names = [
            p.relative_to(folder).as_posix()
            for p in folder.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith(".")
        ]
    total = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{name}\0{path.stat().st_mode & 0o100:o}\0{content}\n".encode())
    return f"tree:{total.hexdigest()}"


def toolchain(project: Project, matrix: Matrix, target: Target) -> Toolchain | None:
    """What the target's kernels are compiled with; None when it has none."""
    if not target.kernels or target.gpu is None:
        return None
    base = matrix.base_of(target)
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[target.arch]
    return Toolchain(
        triplet=f"{machine}-linux-gnu",
        gcc=base.gcc,
        cuda=target.gpu.cuda,
        compiler=read_current(project, matrix, toolchain_lock_name(target.gpu.cuda)).wheels,
        tools=read_current(project, matrix, kernel_tools_lock_name(base.python)).wheels,
    )


def plan_kernels(
    project: Project,
    matrix: Matrix,
    target: Target,
    lock: Lock,
    sources: Mapping[str, KernelSource],
) -> tuple[KernelPlan, ...]:
    """The target's kernels; `sources` overrides what the recipes name."""
    tools = toolchain(project, matrix, target)
    if tools is None or target.gpu is None:
        return ()
    plans = []
    for name in target.kernels:
        kernel = matrix.common.kernels[name]
        source = sources.get(name) or pinned_kernel_source(project, matrix, name)
        if source.kind == "fallback":
            plans.append(_fallback(project, matrix, name, target.gpu.compute_capability))
            continue
        spelling = spell(name, kernel, target.gpu.compute_capability)
        flags, edits = effective(kernel)
        sdist = (
            read_current(project, matrix, kernel_lock_name(name, kernel.version)).wheels
            if source.kind == "sdist"
            else ()
        )
        components = {
            "kernel": f"{kernel.distribution} {kernel.version}",
            "source": source.identity,
            "edits": _digest([e.model_dump(exclude={"why"}) for e in edits]),
            "architectures": f"{kernel.variable}={spelling.write} → {' '.join(spelling.code)}",
            "environment": " ".join(f"{k}={v}" for k, v in sorted(kernel.environment.items())),
            "flags": " ".join(flags),
            "platform": f"{target.platform} {target.base} glibc {matrix.base_of(target).glibc}",
            "python": matrix.base_of(target).python,
            "torch": _torch(lock.wheels, matrix.torch_of(target)),
            "cuda": target.gpu.cuda,
            "headers": _pins(lock.wheels, matrix.common.cuda[target.gpu.cuda].headers),
            "compiler": _pins(tools.compiler),
            "gcc": tools.gcc,
            "tools": _pins(tools.tools),
            "recipe": _digest(kernel.model_dump(exclude={"budget", "gb_per_job"})),
            "stages": _digest([(project.templates / "stages" / n).read_text() for n in SHAPING]),
        }
        plans.append(
            KernelPlan(
                name=name,
                version=kernel.version,
                distribution=kernel.distribution,
                license=kernel.license,
                kind=source.kind,
                identity=source.identity,
                git=kernel.source.git,
                path=kernel.source.path,
                wheels=sdist,
                capability=target.gpu.compute_capability,
                value=spelling.write,
                code=spelling.code,
                variable=kernel.variable,
                environment=dict(kernel.environment),
                flags=flags,
                edits=tuple(e.model_dump(mode="json", exclude_none=True) for e in edits),
                budget=dict(kernel.budget),
                gb_per_job=kernel.gb_per_job,
                imports=kernel.imports,
                key=key_of(components),
                components=components,
            )
        )
    return tuple(plans)


def key_of(components: Mapping[str, str]) -> str:
    return _digest(dict(components))[:16]


def effective(kernel: Kernel) -> tuple[tuple[str, ...], tuple[SourceEdit, ...]]:
    """Flags and edits, with what is left out unless the recipe says `full`."""
    if kernel.full or kernel.trim is None:
        return kernel.flags, kernel.edits
    return (*kernel.flags, *kernel.trim.flags), (*kernel.edits, *kernel.trim.edits)


def _fallback(project: Project, matrix: Matrix, name: str, capability: str) -> KernelPlan:
    kernel = matrix.common.kernels[name]
    other = kernel.source.fallback
    if other is None:
        raise ConfigError(f"images/comfyui.yaml: kernels.{name} has no fallback")
    wheels = read_current(project, matrix, kernel_lock_name(name, other.version)).wheels
    components = {"kernel": other.wheel, "source": f"sha256:{wheels[0].sha256}"}
    return KernelPlan(
        name=name,
        version=other.version,
        distribution=kernel.distribution,
        license=kernel.license,
        kind="fallback",
        identity=other.wheel,
        git=kernel.source.git,
        path=None,
        wheels=wheels,
        capability=capability,
        value="",
        code=(),
        variable=kernel.variable,
        environment={},
        flags=(),
        edits=(),
        budget={},
        gb_per_job=kernel.gb_per_job,
        imports=kernel.imports,
        key=key_of(components),
        components=components,
    )


def wanted(
    project: Project, matrix: Matrix, targets: Sequence[Target], kernels: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """(kernel, key) of every kernel that these targets compile from their pinned sources."""
    from imgbuild.plan import make_plan  # noqa: PLC0415  (plans hold kernels)

    found = [
        (kernel.name, kernel.key)
        for target in targets
        for kernel in make_plan(project, matrix, target).kernels
        if kernel.compiled and (not kernels or kernel.name in kernels)
    ]
    return tuple(dict.fromkeys(found))


def _torch(wheels: Iterable[Wheel], torch: Torch) -> str:
    """The wheel, and what is edited in it."""
    edits = [e.model_dump(exclude={"why"}) for e in torch.edits if e.package == "torch"]
    return _pins(wheels, {"torch"}) + (f" {_digest(edits)[:12]}" if edits else "")


def _pins(wheels: Iterable[Wheel], names: Iterable[str] | None = None) -> str:
    """Names and versions to read, and a hash of the files they stand for."""
    chosen = sorted(w for w in wheels if names is None or w.name in names)
    words = " ".join(dict.fromkeys(f"{w.name}=={w.version}" for w in chosen))
    return f"{words} {_digest([asdict(w) for w in chosen])[:12]}"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
