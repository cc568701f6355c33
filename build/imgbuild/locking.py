"""All the locks of a project: made, refreshed, checked."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from imgbuild import proc
from imgbuild.errors import ConfigError, DriftError, ImgbuildError, NetworkError
from imgbuild.lock import (
    Lock,
    Wheel,
    lock_name,
    normalised,
    parse_lock,
    read_lock,
    read_requirements,
    requirements_name,
)
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgbuild.matrix import Matrix, Target
    from imgbuild.project import Project
    from imgbuild.settings import Settings

TOOL_LOCK = "tool-uv.txt"
SOURCES = "sources.json"
_REACH = 15.0


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What locks/sources.json holds: commits by ComfyUI version, index digests by base."""

    comfyui: Mapping[str, str]
    bases: Mapping[str, str]

    def text(self) -> str:
        return (
            json.dumps({"bases": dict(self.bases), "comfyui": dict(self.comfyui)}, indent=2, sort_keys=True)
            + "\n"
        )


def read_pins(project: Project) -> Pins:
    path = project.locks / SOURCES
    try:
        data: Any = json.loads(read_text(path))
        return Pins(comfyui=dict(data["comfyui"]), bases=dict(data["bases"]))
    except OSError:
        raise DriftError(
            f"there is no {path}: no commit and no digest is pinned", hint="imgbuild lock"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DriftError(f"{path} is not what imgbuild lock writes", hint="imgbuild lock") from None


def source_lock_name(version: str) -> str:
    return f"source-comfyui-{version}.txt"


def toolchain_lock_name(cuda: str) -> str:
    return f"toolchain-{cuda}.txt"


def kernel_tools_lock_name(python: str) -> str:
    return f"kernel-tools-{python}.txt"


def work_lock_name(python: str) -> str:
    return f"work-{python}.txt"


def kernel_lock_name(kernel: str, version: str) -> str:
    return f"source-{kernel}-{version}.txt"


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """A lock that belongs to no target."""

    name: str
    requirements: tuple[str, ...]
    python: str = "3.11"
    machines: tuple[str, ...] = ("x86_64", "aarch64")
    """Both where the host stages need it: they run on whatever machine builds."""
    deps: bool = False
    sdist: bool = False
    what: str = ""
    """What tells it from another lock of the same requirements."""

    @property
    def title(self) -> str:
        return f"{self.what}{': ' if self.what else ''}{', '.join(self.requirements)}"

    @property
    def inputs(self) -> str:
        return ",".join(r.replace(" ", "") for r in self.requirements)


def read_plain_lock(project: Project, name: str) -> Lock:
    path = project.locks / name
    try:
        return parse_lock(read_text(path), name=str(path))
    except OSError:
        raise DriftError(f"there is no {path}", hint="imgbuild lock") from None


def read_current(project: Project, matrix: Matrix, name: str) -> Lock:
    """A lock that belongs to no target; DriftError when it is older than what the matrix asks for."""
    lock = read_plain_lock(project, name)
    wanted = next(plain.inputs for plain in _plain(matrix) if plain.name == name)
    if lock.inputs != wanted:
        raise DriftError(f"{project.locks / name} is older than the matrix", hint="imgbuild lock")
    return lock


def versions(project: Project, matrix: Matrix) -> tuple[str, ...]:
    """The ComfyUI versions that are locked: the pinned one, the fallback, and every one with kept requirements."""
    prefix, suffix = requirements_name("\0").split("\0")
    kept = {p.name[len(prefix) : -len(suffix)] for p in project.requirements.glob(requirements_name("*"))}
    return tuple(sorted({matrix.comfyui.version, matrix.comfyui.fallback.version, *kept}))


def check(project: Project, matrix: Matrix, targets: Sequence[Target]) -> tuple[str, ...]:
    """Every lock that is missing or older than the matrix, as one message each. Reads no network."""
    found = []
    try:
        pins = read_pins(project)
        if matrix.comfyui.version not in pins.comfyui:
            found.append(f"no commit is pinned for ComfyUI {matrix.comfyui.version}")
        found += [f"no digest is pinned for the base {b}" for b in matrix.common.bases if b not in pins.bases]
    except DriftError as e:
        found.append(e.message)
    for plain in _plain(matrix):
        try:
            if read_plain_lock(project, plain.name).inputs != plain.inputs:
                found.append(f"{project.locks / plain.name} is older than the matrix")
        except DriftError as e:
            found.append(e.message)
    for target in targets:
        for version in versions(project, matrix):
            try:
                read_lock(project, matrix, target, version)
            except DriftError as e:
                found.append(e.message)
    return tuple(found)


def _plain(matrix: Matrix) -> tuple[_Plain, ...]:
    fallback = matrix.comfyui.fallback
    found = [
        _Plain(name=TOOL_LOCK, requirements=("uv",)),
        _Plain(name=source_lock_name(fallback.version), requirements=(fallback.wheel,), machines=("x86_64",)),
    ]
    for python in sorted({matrix.base_of(t).python for t in matrix.targets.values()}):
        if work := matrix.common.work:
            what, name = f"the queue's libraries for Python {python}", work_lock_name(python)
            found.append(_Plain(name=name, requirements=work, python=python, deps=True, what=what))
    compiled = [t for t in matrix.targets.values() if t.kernels and t.gpu]
    for cuda in sorted({t.gpu.cuda for t in compiled if t.gpu}):
        toolchain = matrix.common.cuda[cuda].toolchain
        found.append(_Plain(name=toolchain_lock_name(cuda), requirements=toolchain))
    for python in sorted({matrix.base_of(t).python for t in compiled}):
        tools = matrix.common.kernel_tools
        found.append(
            _Plain(name=kernel_tools_lock_name(python), requirements=tools, python=python, deps=True)
        )
    for name in sorted({k for t in compiled for k in t.kernels}):
        kernel = matrix.common.kernels[name]
        if sdist := kernel.source.sdist:
            found.append(
                _Plain(name=kernel_lock_name(name, kernel.version), requirements=(sdist,), sdist=True)
            )
        if other := kernel.source.fallback:
            found.append(
                _Plain(
                    name=kernel_lock_name(name, other.version),
                    requirements=(other.wheel,),
                    machines=("x86_64",),
                )
            )
    return tuple(found)


def same_requirements(project: Project, tree: Path, version: str) -> bool:
    """Whether a tree asks for what is kept (and so locked) for its version."""
    path = project.requirements / requirements_name(version)
    return path.is_file() and normalised(read_text(path)) == normalised(read_text(tree / "requirements.txt"))


def make(
    project: Project,
    matrix: Matrix,
    targets: Sequence[Target],
    *,
    settings: Settings,
    env: Mapping[str, str],
    upgrade: Sequence[str] | None,
    say: Callable[[str], None],
    tree: tuple[str, Path] | None = None,
) -> tuple[Path, ...]:
    """Make or refresh the locks; return the files that changed.

    `upgrade`: None keeps every version that still fits, names take those
    packages anew, an empty sequence takes all anew. `tree`: a version and a
    checkout of it, whose requirements are kept and locked. Files are written
    when everything is resolved, so a failure leaves the old ones.
    """
    if not project.writable:
        raise ConfigError(
            "the tool's own data cannot be written to: a lock needs a project of yours",
            hint="work in a checkout of imgbuild, or name one: imgbuild --project DIR lock …",
        )
    from imgbuild.resolve import resolve_target  # noqa: PLC0415

    names = {str(canonicalize_name(n)) for n in upgrade or ()}
    environment = settings.environment(env)
    texts = {
        project.locks / SOURCES: _pins(project, matrix, env=environment, say=say, anew=upgrade == ()).text()
    }
    plain = _plain_locks(
        project, matrix, settings=settings, env=env, anew=upgrade == (), names=names, say=say
    )
    texts |= plain
    kept: dict[str, tuple[str, ...]] = {}
    if tree is not None:
        version, folder = tree
        text = read_text(folder / "requirements.txt")
        texts[project.requirements / requirements_name(version)] = text
        kept[version] = normalised(text)
    elif not (project.requirements / requirements_name(matrix.comfyui.version)).is_file():
        version = matrix.comfyui.version
        text = _fetch_requirements(matrix, version, env=environment, say=say)
        texts[project.requirements / requirements_name(version)] = text
        kept[version] = normalised(text)
    found = {w.name for path, text in plain.items() for w in _wheels(path, text)}
    for target in targets:
        for version in kept if tree is not None else versions(project, matrix):
            requirements = kept.get(version) or read_requirements(project, matrix, version)
            path = project.locks / lock_name(target.name, version)
            say(f"locking {target.name} for ComfyUI {version}")
            old = _old_wheels(path)
            found |= {w.name for w in old}
            lock = resolve_target(
                target,
                matrix,
                requirements,
                settings=settings,
                env=env,
                keep=() if upgrade == () else tuple(w for w in old if w.name not in names),
            )
            found |= {w.name for w in lock.wheels}
            title = f"{target.name}: ComfyUI {version}, torch {target.torch}, Python {matrix.base_of(target).python}"
            texts[path] = lock.text(title)
    if unknown := names - found - {"uv"}:
        raise ConfigError(f"--upgrade-package: no lock has {', '.join(sorted(unknown))}")
    changed = tuple(path for path, text in texts.items() if not path.is_file() or read_text(path) != text)
    for path in changed:
        write_atomically(path, texts[path])
    return changed


def _plain_locks(
    project: Project,
    matrix: Matrix,
    *,
    settings: Settings,
    env: Mapping[str, str],
    anew: bool,
    names: set[str],
    say: Callable[[str], None],
) -> dict[Path, str]:
    """The locks of what is not a target's own: uv, compilers, sources."""
    from imgbuild.resolve import resolve, resolve_sdist  # noqa: PLC0415

    texts = {}
    for plain in _plain(matrix):
        title = plain.title
        say(f"locking {title}")
        path = project.locks / plain.name
        wheels: set[Wheel] = set()
        if plain.sdist:
            wheels = {resolve_sdist(r, settings=settings, env=env) for r in plain.requirements}
        for machine in () if plain.sdist else plain.machines:
            wheels.update(
                resolve(
                    plain.requirements,
                    python=plain.python,
                    platform=f"{machine}-manylinux_2_28",
                    settings=settings,
                    env=env,
                    keep=() if anew else tuple(w for w in _old_wheels(path) if w.name not in names),
                    no_deps=not plain.deps,
                )
            )
        texts[path] = Lock(inputs=plain.inputs, wheels=tuple(wheels)).text(title)
    return texts


def _wheels(path: Path, text: str) -> tuple[Wheel, ...]:
    return parse_lock(text, name=str(path)).wheels


def _old_wheels(path: Path) -> tuple[Wheel, ...]:
    """What a lock held, as far as it can be read: only a preference for the new one."""
    try:
        return _wheels(path, read_text(path))
    except (OSError, ImgbuildError):
        return ()


def _pins(
    project: Project, matrix: Matrix, *, env: Mapping[str, str], say: Callable[[str], None], anew: bool
) -> Pins:
    """Pin what has no pin yet; `anew`: also look again at what has one."""
    path = project.locks / SOURCES
    old = read_pins(project) if path.is_file() else Pins(comfyui={}, bases={})
    comfyui, bases = dict(old.comfyui), {n: d for n, d in old.bases.items() if n in matrix.common.bases}
    version = matrix.comfyui.version
    if version not in comfyui:
        comfyui[version] = _commit(matrix.comfyui.git, version, env)
    for name, base in matrix.common.bases.items():
        if name in bases and not anew:
            continue
        digest = _digest(base.image, env)
        if digest:
            bases[name] = digest
        elif name in bases:
            say(f"kept the digest of {base.image}: no registry can be reached")
        else:
            raise NetworkError(
                f"no registry can be reached to pin {base.image}",
                hint=f'write its index digest into {path} under "bases"',
            )
    return Pins(comfyui=comfyui, bases=bases)


def _commit(git: str, version: str, env: Mapping[str, str]) -> str:
    argv = ["git", "ls-remote", git, f"refs/tags/v{version}", f"refs/tags/v{version}^{{}}"]
    done = proc.run(argv, env=env, check=False, timeout=_REACH)
    found = [line.split()[0] for line in done.stdout.splitlines() if line]
    if not found:
        raise NetworkError(
            f"the commit of ComfyUI {version} cannot be found: {git} has no tag v{version} or cannot be reached",
            hint=f'write it into images/locks/{SOURCES} under "comfyui", or go on with the old version',
        )
    return found[-1]  # the peeled tag, where there is one, is the commit


def _digest(image: str, env: Mapping[str, str]) -> str | None:
    if proc.which("docker", env=env) is None:
        return None
    argv = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    done = proc.run(argv, check=False, timeout=_REACH, env=env)
    digest = done.stdout.strip()
    return digest if done.returncode == 0 and digest.startswith("sha256:") else None


def _fetch_requirements(
    matrix: Matrix, version: str, *, env: Mapping[str, str], say: Callable[[str], None]
) -> str:
    say(f"fetching the requirements of ComfyUI {version}")
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            "git",
            "clone",
            "--quiet",
            "--depth",
            "1",
            "--branch",
            f"v{version}",
            matrix.comfyui.git,
            folder,
        ]
        if proc.run(argv, env=env, check=False, timeout=300).returncode:
            raise NetworkError(
                f"the requirements of ComfyUI {version} are not kept, and {matrix.comfyui.git} cannot be reached",
                hint="imgbuild lock --source comfyui=PATH, with PATH a checkout of that version",
            )
        return read_text(Path(folder) / "requirements.txt")


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
