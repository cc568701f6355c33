"""All the locks of a project: made, refreshed, checked."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.errors import ConfigError, DriftError, NetworkError
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
        data: Any = json.loads(path.read_text())
        return Pins(comfyui=dict(data["comfyui"]), bases=dict(data["bases"]))
    except OSError:
        raise DriftError(
            f"there is no {path}: no commit and no digest is pinned", hint="imgbuild lock"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DriftError(f"{path} is not what imgbuild lock writes", hint="imgbuild lock") from None


def source_lock_name(version: str) -> str:
    return f"source-comfyui-{version}.txt"


def read_plain_lock(project: Project, name: str) -> Lock:
    path = project.locks / name
    try:
        return parse_lock(path.read_text(), name=str(path))
    except OSError:
        raise DriftError(f"there is no {path}", hint="imgbuild lock") from None


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
    for name, wanted in _plain_inputs(matrix).items():
        try:
            if read_plain_lock(project, name).inputs != wanted:
                found.append(f"{project.locks / name} is older than the matrix")
        except DriftError as e:
            found.append(e.message)
    for target in targets:
        for version in versions(project, matrix):
            try:
                read_lock(project, matrix, target, version)
            except DriftError as e:
                found.append(e.message)
    return tuple(found)


def _plain_inputs(matrix: Matrix) -> dict[str, str]:
    fallback = matrix.comfyui.fallback
    return {TOOL_LOCK: "uv", source_lock_name(fallback.version): fallback.wheel}


def keep_requirements(project: Project, tree: Path, version: str) -> Path:
    """Keep a checkout's requirements under images/requirements; return where."""
    if not project.writable:
        raise ConfigError(
            "the tool's own data cannot be written to: a new lock needs a project of yours",
            hint="work in a checkout of imgbuild, or name one: imgbuild --project DIR lock …",
        )
    path = project.requirements / requirements_name(version)
    write_atomically(path, (tree / "requirements.txt").read_text())
    return path


def same_requirements(project: Project, tree: Path, version: str) -> bool:
    """Whether a tree asks for what is kept (and so locked) for its version."""
    path = project.requirements / requirements_name(version)
    return path.is_file() and normalised(path.read_text()) == normalised(
        (tree / "requirements.txt").read_text()
    )


def make(
    project: Project,
    matrix: Matrix,
    targets: Sequence[Target],
    *,
    settings: Settings,
    env: Mapping[str, str],
    upgrade: Sequence[str] | None,
    say: Callable[[str], None],
    only_versions: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Make or refresh the locks; return the files that changed. Nothing is written half."""
    from imgbuild.resolve import resolve, resolve_target  # noqa: PLC0415

    changed = _refresh_pins(project, matrix, env=env, say=say, upgrade=upgrade)
    fallback = matrix.comfyui.fallback
    for name, requirement in _plain_inputs(matrix).items():
        say(f"locking {requirement}")
        # Both platforms: the compiler stages run on whatever machine builds.
        platforms = (
            ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
            if name == TOOL_LOCK
            else ("x86_64-manylinux_2_28",)
        )
        keep = () if upgrade is not None else _old_wheels(project, name)
        wheels: set[Wheel] = set()
        for platform in platforms:
            wheels.update(
                resolve(
                    [requirement],
                    python="3.11",
                    platform=platform,
                    settings=settings,
                    env=env,
                    keep=keep,
                    no_deps=True,
                )
            )
        text = Lock(inputs=requirement, wheels=tuple(wheels)).text(requirement)
        changed += _write_if_new(project.locks / name, text)
    for target in targets:
        for version in only_versions or versions(project, matrix):
            if (
                version == matrix.comfyui.version
                and not (project.requirements / requirements_name(version)).is_file()
            ):
                changed.append(_fetch_requirements(project, matrix, version, say=say))
            requirements = read_requirements(project, matrix, version)
            path = project.locks / lock_name(target.name, version)
            say(f"locking {target.name} for ComfyUI {version}")
            old = parse_lock(path.read_text(), name=str(path)) if path.is_file() else None
            lock = resolve_target(
                target, matrix, requirements, settings=settings, env=env, old=old, upgrade=upgrade
            )
            title = f"{target.name}: ComfyUI {version}, torch {target.torch}, Python {matrix.base_of(target).python}"
            changed += _write_if_new(path, lock.text(title))
    if fallback.version not in versions(project, matrix):
        raise ConfigError(f"the fallback {fallback.version} has no requirements")
    return tuple(changed)


def _old_wheels(project: Project, name: str) -> tuple[Wheel, ...]:
    path = project.locks / name
    return parse_lock(path.read_text(), name=str(path)).wheels if path.is_file() else ()


def _refresh_pins(
    project: Project,
    matrix: Matrix,
    *,
    env: Mapping[str, str],
    say: Callable[[str], None],
    upgrade: Sequence[str] | None,
) -> list[Path]:
    """Pin what has no pin yet; with a full --upgrade also look again at what has one."""
    path = project.locks / SOURCES
    old = read_pins(project) if path.is_file() else Pins(comfyui={}, bases={})
    anew = upgrade is not None and not upgrade
    comfyui, bases = dict(old.comfyui), {n: d for n, d in old.bases.items() if n in matrix.common.bases}
    version = matrix.comfyui.version
    if version not in comfyui:
        comfyui[version] = _commit(matrix.comfyui.git, version)
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
    return _write_if_new(path, Pins(comfyui=comfyui, bases=bases).text())


def _commit(git: str, version: str) -> str:
    done = proc.run(
        ["git", "ls-remote", git, f"refs/tags/v{version}", f"refs/tags/v{version}^{{}}"],
        check=False,
        timeout=_REACH,
    )
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
    project: Project, matrix: Matrix, version: str, *, say: Callable[[str], None]
) -> Path:
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
        if proc.run(argv, check=False, timeout=300).returncode:
            raise NetworkError(
                f"the requirements of ComfyUI {version} are not kept, and {matrix.comfyui.git} cannot be reached",
                hint="imgbuild lock --source comfyui=PATH, with PATH a checkout of that version",
            )
        return keep_requirements(project, Path(folder), version)


def _write_if_new(path: Path, text: str) -> list[Path]:
    if path.is_file() and path.read_text() == text:
        return []
    write_atomically(path, text)
    return [path]


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
