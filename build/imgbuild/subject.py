"""The image under test, and the plan it was built from: what `imgbuild test` holds against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from imgbuild.errors import EngineError, ImgbuildError, SelectionError, VerificationError
from imgbuild.history import records
from imgbuild.kernels import KernelSource
from imgbuild.plan import Plan, Source, make_plan
from imgbuild.verify import parse_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.engines import Engine, Image
    from imgbuild.matrix import Matrix, Target
    from imgbuild.project import Project

_MACHINES = {
    "x86_64": "linux/amd64",
    "amd64": "linux/amd64",
    "aarch64": "linux/arm64",
    "arm64": "linux/arm64",
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One image, by its digest."""

    reference: str
    """As it was asked for."""
    image: Image
    plan: Plan | None
    """What the project as it is now would build with the image's own sources."""
    why_no_plan: str = ""
    stale: str = ""
    """Why the image is not what the project builds now; empty when it is, or when nobody can say."""
    machine: str = "linux/amd64"
    """The engine's platform."""

    @property
    def target(self) -> str:
        return self.image.labels.get("imgbuild.target", "unknown")

    @property
    def emulated(self) -> bool:
        return self.image.platform != self.machine


def find_subject(
    engine: Engine,
    project: Project,
    matrix: Matrix,
    *,
    reference: str,
    target: Target | None = None,
    cache: Path | None = None,
    machine: str = "x86_64",
) -> Subject:
    """Look an image up. SelectionError when the engine has none of that name.

    `target` holds it against that target instead of the one that its label names; `cache` has the history of
    builds, in which the digest of the last one stands.
    """
    image = engine.find(reference)
    if image is None:
        hint = f"imgbuild build --target {target.name}" if target else "imgbuild build makes one"
        raise SelectionError(f"{engine.name} has no image {reference}", hint=hint)
    plan, why = None, ""
    try:
        plan = plan_of(project, matrix, image.labels, target=target)
    except ImgbuildError as error:
        why = error.message
    return Subject(
        reference=reference,
        image=image,
        plan=plan,
        why_no_plan=why,
        stale=_stale(image, plan, cache, engine.name),
        machine=_MACHINES.get(machine, f"linux/{machine}"),
    )


def plan_of(project: Project, matrix: Matrix, labels: Any, *, target: Target | None = None) -> Plan:
    """The plan of an image, out of its labels and the project as it is now.

    The labels say which sources went in, since a build may have taken a fallback. VerificationError when they say
    too little, SelectionError when the matrix has no such target.
    """
    name = labels.get("imgbuild.target")
    if target is None and name is None:
        raise VerificationError("it has no label imgbuild.target: it is not one of ours")
    found = target or matrix.targets.get(str(name))
    if found is None:
        raise SelectionError(f"the matrix has no target {name!r}, which the label imgbuild.target names")
    try:
        kind = labels["imgbuild.comfyui.source"]
        identity = labels["imgbuild.comfyui.identity"]
        version = labels["imgbuild.comfyui"]
    except KeyError as error:
        raise VerificationError(f"it has no label {error.args[0]}") from None
    source = Source(
        version=version,
        kind=cast("Any", kind),
        git=matrix.comfyui.git,
        commit=identity if kind == "git" else None,
        identity=identity,
    )
    return make_plan(
        project, matrix, found, source=source, kernel_sources=_kernel_sources(matrix, found, labels)
    )


def _kernel_sources(matrix: Matrix, target: Target, labels: Any) -> dict[str, KernelSource]:
    """The kernels of which only a wheel without compiled code was to be had."""
    found = {}
    for kernel in parse_kernels(labels.get("imgbuild.kernels", "none")):
        recipe = matrix.common.kernels.get(kernel.name)
        fallback = getattr(recipe.source, "fallback", None) if recipe else None
        if not kernel.compiled and kernel.name in target.kernels and fallback is not None:
            found[kernel.name] = KernelSource(kind="fallback", identity=fallback.wheel)
    return found


def _stale(image: Image, plan: Plan | None, cache: Path | None, engine: str) -> str:
    """Whether the project has moved on since the image was built."""
    label = image.labels.get("imgbuild.plan", "none")
    if plan is not None and label != plan.key:
        return f"its plan is {label}, and the project's is {plan.key} now (imgbuild why {plan.name} says what changed)"
    if plan is None or cache is None or image.tag.removeprefix("localhost/") not in plan.tags:
        return ""
    # Each engine has digests of its own.
    all_built = records(cache, plan.name)
    built = [r.digest for r in all_built if (r.tag, r.engine) == (plan.tags[0], engine) and r.digest]
    if built and image.digest not in built[-1:]:
        return f"it is {image.digest[:19]}, and the last build here gave {built[-1][:19]}"
    return ""


def check_engine(engine: Engine) -> None:
    """EngineError when nobody answers."""
    if not engine.alive():
        raise EngineError(f"no {engine.name} engine answers", hint="imgbuild doctor --fix")
