"""Kernels for a build: found in the wheelhouse, or compiled within a budget of memory and put there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild import fatbin
from imgbuild.errors import ConfigError, RegistryError, VerificationError
from imgbuild.estimate import gigabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from imgbuild.artifacts import Artifacts
    from imgbuild.kernels import KernelPlan
    from imgbuild.plan import Plan
    from imgbuild.wheelhouse import Entry, Wheelhouse

KILLED = "imgbuild: a compiler was killed"
"""What a compile stage prints when that happened (templates/stages/measure.py)."""
DEFAULT_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many compilers may run at once, over all kernels that compile at the same time."""

    jobs: int
    cpus: int
    available: int
    """Bytes that the machine could give away when it was asked."""
    share: float
    gb_per_job: float

    def sentence(self) -> str:
        limit = (
            f"{self.share:.0%} of {gigabytes(self.available)} available memory, {self.gb_per_job:g} GB each"
        )
        many = f"{self.jobs} compiler{'s' if self.jobs > 1 else ''} at once"
        return f"{many}: {self.cpus} cores; {limit} (--jobs, --memory-share)"


def budget(
    kernels: Iterable[KernelPlan],
    *,
    jobs: int | None,
    share: float,
    available: int,
    cpus: int | None = None,
) -> Budget:
    """As many as fit into a share of the available memory, and no more than there are cores; at least one.

    `cpus`: those of the machine that compiles, where it is not this one.
    """
    gb = max((k.gb_per_job for k in kernels), default=1.0)
    cpus = cpus or len(os.sched_getaffinity(0))
    fits = int(share * available / (gb * 1e9))
    return Budget(
        jobs=jobs or max(1, min(cpus, fits)), cpus=cpus, available=available, share=share, gb_per_job=gb
    )


def available_memory() -> int:
    """Bytes: what the kernel calls available, less where this process is confined to less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        found.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(found, default=4_000_000_000)


def budget_secret(kernels: Iterable[KernelPlan], jobs: int) -> str:
    """What the compile stages read, by kernel: as a secret it is no part of any key."""
    return json.dumps(
        {
            k.name: {
                **{name: text.replace("{jobs}", str(jobs)) for name, text in k.budget.items()},
                "IMGBUILD_PLACES": str(jobs),
            }
            for k in kernels
        }
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The wheels at hand, and the kernels that have to be compiled, each once."""

    entries: Mapping[str, Entry]
    """By key."""
    missing: tuple[tuple[Plan, KernelPlan], ...]
    """Also without those that a dry run would pull."""


def find(
    plans: Sequence[Plan],
    store: Wheelhouse,
    registry: Artifacts | None,
    *,
    say: Callable[[str], None],
    only: Sequence[str] = (),
    quiet: bool = False,
    pull: bool = True,
) -> Found:
    """Look into the local wheelhouse, then into the registry's.

    `only` names kernels, none means all. `quiet`: what is at hand already is not said, what is pulled is.
    Without `pull` a registry is only asked what it has.
    """
    entries: dict[str, Entry] = {}
    missing: list[tuple[Plan, KernelPlan]] = []
    for plan, kernel in _wanted(plans, only):
        words = f"{kernel.name} {kernel.version} for {plan.name} ({', '.join(kernel.code)})"
        entry = _kept(plan, kernel, store)
        if entry is not None and not quiet:
            say(f"{words}: in the wheelhouse, key {kernel.key}; compiling it took {duration(entry.seconds)}")
        if entry is None and registry is not None and not pull:
            if _offered(kernel, words, registry, say=say, quiet=quiet):
                continue
        elif entry is None and registry is not None:
            entry = _pulled(plan, kernel, words, store, registry, say=say)
        if entry is None:
            missing.append((plan, kernel))
        else:
            entries[kernel.key] = entry
    return Found(entries=entries, missing=tuple(missing))


def _wanted(plans: Sequence[Plan], only: Sequence[str]) -> tuple[tuple[Plan, KernelPlan], ...]:
    """Each key once, with the first plan that has it."""
    found: dict[str, tuple[Plan, KernelPlan]] = {}
    for plan in plans:
        for kernel in plan.kernels:
            if kernel.compiled and (not only or kernel.name in only):
                found.setdefault(kernel.key, (plan, kernel))
    return tuple(found.values())


def _kept(plan: Plan, kernel: KernelPlan, store: Wheelhouse) -> Entry | None:
    entry = store.get(kernel.name, kernel.key, distribution=kernel.distribution)
    if entry is not None and (why := foreign(entry, plan, kernel)):
        store.reject(entry, why)
        return None
    return entry


def _offered(
    kernel: KernelPlan, words: str, registry: Artifacts, *, say: Callable[[str], None], quiet: bool
) -> bool:
    """Whether a registry has a kernel; nothing of it is moved."""
    if registry.down:  # said already
        return False
    try:
        there = registry.exists(kernel.name, kernel.key)
    except RegistryError as e:
        say(f"{words}: not from {registry.where}: {e.message}")
        return False
    if there and not quiet:
        say(f"{words}: would be pulled from {registry.where}, key {kernel.key}")
    return there


def _pulled(
    plan: Plan,
    kernel: KernelPlan,
    words: str,
    store: Wheelhouse,
    registry: Artifacts,
    *,
    say: Callable[[str], None],
) -> Entry | None:
    if registry.down:  # said already
        return None
    try:
        entry = registry.pull(kernel.name, kernel.key, store, distribution=kernel.distribution)
    except RegistryError as e:  # its loss costs time, not the build
        say(f"{words}: not from {registry.where}: {e.message}")
        return None
    if entry is not None and (why := foreign(entry, plan, kernel)):
        store.reject(entry, why)
        return None
    if entry is not None:
        say(
            f"{words}: pulled from {registry.where}, key {kernel.key}; compiling it took {duration(entry.seconds)}"
        )
    return entry


def foreign(entry: Entry, plan: Plan, kernel: KernelPlan) -> str | None:
    """What shows that a whole wheel is not the one its key stands for; None when nothing does."""
    if dict(entry.components) != kernel.components:
        wrong = sorted(n for n, v in kernel.components.items() if entry.components.get(n) != v)
        return f"it was made from another {', '.join(wrong) or 'set of components'}"
    try:
        proven(entry.wheel, plan, kernel)
    except VerificationError as e:
        return e.message
    return None


def target_name(plan: Plan, kernel: KernelPlan) -> str:
    """In a bake file, and so in its progress and its log."""
    return f"{plan.name}-{kernel.name}"


def bake_targets(
    images: Mapping[str, Any], missing: Sequence[tuple[Plan, KernelPlan]], out: Path
) -> dict[str, Any]:
    """A bake file that compiles kernels by the stages of their targets' Dockerfiles."""
    targets = {}
    for plan, kernel in missing:
        image = images["target"][plan.name]
        name = target_name(plan, kernel)
        kept = {
            k: v
            for k, v in image.items()
            if k in ("args", "context", "contexts", "dockerfile", "platforms", "secret")
        }
        targets[name] = {
            **kept,
            "target": f"kernel-{kernel.name}",
            "output": [f"type=local,dest={out / name}"],
            "attest": ["type=provenance,disabled=true"],
        }
    return {"target": targets}


@dataclass(frozen=True, kw_only=True)
class Collected:
    entries: Mapping[str, Entry]
    """By key."""
    refused: tuple[VerificationError, ...]
    """Wheels that are not what their recipes promise."""


def collect(
    missing: Sequence[tuple[Plan, KernelPlan]], out: Path, store: Wheelhouse, *, say: Callable[[str], None]
) -> Collected:
    """Put what was compiled into the wheelhouse, each opened first; what is not there is left out."""
    entries, refused = {}, []
    for plan, kernel in missing:
        folder = out / target_name(plan, kernel)
        record = folder / "build.json"
        wheels = sorted(folder.glob("*.whl"))
        if not record.is_file() or len(wheels) != 1:
            continue
        measured: Any = json.loads(record.read_text())
        try:
            entry = store.put(
                kernel.name,
                kernel.version,
                kernel.key,
                wheels[0],
                components=kernel.components,
                inventory=proven(wheels[0], plan, kernel),
                seconds=float(measured["seconds"]),
                peak_bytes=int(measured["peak_bytes"]),
                distribution=kernel.distribution,
            )
        except VerificationError as e:
            refused.append(e)
            continue
        shutil.rmtree(folder)
        say(
            f"{kernel.name} {kernel.version} for {plan.name}: compiled in {duration(entry.seconds)}, "
            f"{entry.size / 1e6:.1f} MB, at most {gigabytes(entry.peak_bytes)} of memory; holds {', '.join(kernel.code)}"
        )
        entries[kernel.key] = entry
    return Collected(entries=entries, refused=tuple(refused))


def proven(wheel: Path, plan: Plan, kernel: KernelPlan) -> Sequence[Mapping[str, Any]]:
    """The wheel's inventory of GPU code; VerificationError unless it is what the recipe promises."""
    try:
        found = fatbin.check(
            wheel, capability=kernel.capability, code=kernel.code, machine=plan.manylinux.partition("-")[0]
        )
        inventory = fatbin.inventory(wheel)
    except fatbin.FatbinError as e:
        raise _unproven(plan, kernel, str(e)) from None
    if empty := [library.name for library in found if not library.codes]:
        raise _unproven(plan, kernel, f"{wheel.name}: {', '.join(empty)} holds no GPU code")
    return inventory


def _unproven(plan: Plan, kernel: KernelPlan, why: str) -> VerificationError:
    return VerificationError(
        f"{kernel.name} for {plan.name} is not what it was compiled for: {why}",
        hint=f"images/comfyui.yaml: kernels.{kernel.name}.spelling",
    )


def wheel_folder(entry: Entry, folder: Path) -> Path:
    """A folder with the wheel and nothing else, as a build's named context."""
    folder.mkdir(parents=True)
    try:
        os.link(entry.wheel, folder / entry.wheel.name)
    except OSError:  # another file system
        shutil.copy2(entry.wheel, folder / entry.wheel.name)
    return folder


def check_jobs(jobs: int | None, share: float) -> None:
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: at least one compiler has to run")
    if not 0 < share <= 1:
        raise ConfigError(
            f"--memory-share {share:g}: write a share of the memory between 0 and 1, such as 0.5"
        )


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
