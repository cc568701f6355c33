"""Which targets a change touches: what images were made from at a revision, beside what they are made from now.

Plans are compared, not names of files: a comment touches nothing, and a line of one target that other images
mention touches those too. Whatever cannot be decided touches everything, and says so.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild import proc
from imgbuild.errors import ImgbuildError
from imgbuild.kernels import KernelSource, tree_hash
from imgbuild.matrix import load_matrix
from imgbuild.parts import parts
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.render import Renderer
from imgbuild.sources import fallback_source
from imgbuild.why import differing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imgbuild.matrix import Matrix, Target
    from imgbuild.parts import Parts
    from imgbuild.plan import Plan

_GIT_TIMEOUT = 120.0
_SHOWN = 4
"""Reasons of one kind that are named before the rest is counted."""

# What images are made from: compared by meaning.
_MADE_FROM = ("entrypoint/", "images/", "kernels/", "nodes/", "templates/", "LICENSE", "NOTICE")
# What makes and proves every image. The first of these lists that names a path decides.
_FOR_ALL = (
    ".github/",
    "Makefile",
    "build/",
    "images/workflows/",
    "pyproject.toml",
    "requirements-dev.txt",
    "templates/report.html.j2",
    "tests/image/",
)
# What neither goes into an image nor makes or proves one. rendered/ and the schemas follow from the rest, which
# `imgbuild render --check` sees to.
_FOR_NONE = (
    ".gitattributes",
    ".gitignore",
    ".hadolint.yaml",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "bench/",
    "compose/",
    "docs/",
    "images/schema/",
    "rendered/",
    "tests/conftest.py",
    "tests/dgls/",
    "tests/e2e/",
    "tests/gpu/",
    "tests/runner.py",
    "tests/unit/",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a change touches a target; `why` is a line for people, also when it does not."""

    target: str
    touched: bool
    why: str


class _DoubtError(Exception):
    """Nothing can be said: then everything is touched."""


def touched(
    project: Project, matrix: Matrix, targets: Sequence[Target], revision: str, *, env: Mapping[str, str]
) -> tuple[Verdict, ...]:
    """A verdict for each target on what differs between `revision` and the commit that is checked out.

    The two trees are compared and not the history between them, so a merge or a rename is nothing special. Every
    doubt touches all targets: no git, an unknown revision, a tree with uncommitted changes, a path nobody knows,
    data at the revision that this version of the tool cannot read.
    """
    git = _Git(project, env)
    try:
        paths = git.changed(revision)
        _refuse_unknown(paths)
        if not any(_is(path, _MADE_FROM) for path in paths):
            why = f"nothing that an image is made from ({_few(paths)})" if paths else "nothing has changed"
            return tuple(Verdict(target=t.name, touched=False, why=why) for t in targets)
        with tempfile.TemporaryDirectory(prefix="imgbuild-") as folder:
            before = git.tree(revision, Path(folder))
            return tuple(_compared(before, project, matrix, targets, revision))
    except _DoubtError as e:
        return tuple(Verdict(target=t.name, touched=True, why=str(e)) for t in targets)


def _is(path: str, known: Sequence[str]) -> bool:
    return any(path.startswith(name) if name.endswith("/") else path == name for name in known)


def _refuse_unknown(paths: Sequence[str]) -> None:
    """Raise for a path that touches every target."""
    for path in paths:
        if _is(path, _FOR_ALL):
            raise _DoubtError(f"{path} makes or tests every image")
        # What is hidden, a .dockerignore say, is in no hash of a folder.
        compared = _is(path, _MADE_FROM) and "/." not in path
        if not (compared or _is(path, _FOR_NONE)):
            raise _DoubtError(f"nothing is known of {path}")


@dataclass(frozen=True)
class _Git:
    """The repository around a project; every failure of git is a doubt."""

    project: Project
    env: Mapping[str, str]

    def _run(self, *words: str) -> str:
        # In a hook these name somebody else's repository or index.
        env = {k: v for k, v in self.env.items() if k not in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")}
        try:
            done = proc.run(
                ["git", "-C", self.project.root, *words], env=env, check=False, timeout=_GIT_TIMEOUT
            )
        except ImgbuildError as e:
            raise _DoubtError(e.message) from None
        if done.returncode:
            last = done.stderr.strip().splitlines()
            raise _DoubtError(f"git {words[0]} failed: {last[-1] if last else done.returncode}")
        return done.stdout

    def changed(self, revision: str) -> tuple[str, ...]:
        """Paths of the project that differ between the revision and HEAD."""
        self._run("ls-files", "--error-unmatch", "images/comfyui.yaml")
        if dirty := self._run("status", "--porcelain", "-z", "--untracked-files=normal", "--", "."):
            name = dirty.split("\0")[0][3:]
            raise _DoubtError(f"{name} is not committed: jobs would check out something else than this")
        commit = self._commit(revision)
        listed = self._run("diff", "--name-only", "--no-renames", "--relative", "-z", commit, "HEAD")
        return tuple(name for name in listed.split("\0") if name)

    def _commit(self, revision: str) -> str:
        try:
            return self._run(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
            ).strip()
        except _DoubtError:
            shallow = self._run("rev-parse", "--is-shallow-repository").strip() == "true"
            more = "; the clone is shallow (fetch the whole history)" if shallow else ""
            raise _DoubtError(f"there is no revision {revision!r} here{more}") from None

    def tree(self, revision: str, folder: Path) -> Project:
        """The project's data as they were."""
        commit = self._commit(revision)
        roots = sorted({name.rstrip("/") for name in _MADE_FROM})
        there = self._run("ls-tree", "--name-only", "-z", commit, "--", *roots).split("\0")
        archive, root = folder / "then.tar", folder / "then"
        self._run("archive", "--format=tar", f"--output={archive}", commit, "--", *filter(None, there))
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
        return Project(root=root, writable=False)


def _compared(
    before: Project, project: Project, matrix: Matrix, targets: Sequence[Target], revision: str
) -> Iterator[Verdict]:
    try:
        old = load_matrix(before.images)
    except (ImgbuildError, OSError) as e:
        first = str(e).splitlines()
        raise _DoubtError(
            f"images/ of {revision} cannot be read: {first[min(1, len(first) - 1)].strip()}"
        ) from None
    old_tree, new_tree = _Tree(before, old), _Tree(project, matrix)
    for target in targets:
        then = old.targets.get(target.name)
        if then is None:
            yield Verdict(target=target.name, touched=True, why=f"{revision} has no such target")
            continue
        now = new_tree.print(target)
        try:
            was = old_tree.print(then)
        except (ImgbuildError, OSError) as e:
            raise _DoubtError(f"{target.name} of {revision} cannot be resolved: {e}") from None
        yield _verdict(target.name, was, now, old, matrix)


@dataclass(frozen=True, kw_only=True)
class _Print:
    """Everything that shapes the images of a target, from the pinned sources and from those in their place."""

    whole: str
    runner: str | None
    parts: Callable[[], tuple[Parts, ...]]
    """The same in words."""


@dataclass(frozen=True)
class _Tree:
    """A project's data, at whichever commit."""

    project: Project
    matrix: Matrix

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self.project.templates)

    @cached_property
    def _code(self) -> str:
        """What goes into every image as it is."""
        nodes = (self.project.nodes / name for name in self.matrix.common.nodes)
        return "".join(tree_hash(folder) for folder in (self.project.entrypoint, *nodes))

    def print(self, target: Target) -> _Print:
        plans = (make_plan(self.project, self.matrix, target), _fallback(self.project, self.matrix, target))
        total = hashlib.sha256(self._code.encode())
        for plan in plans:
            total.update(plan.key.encode())
            for name, text in sorted(self._renderer.context(plan).items()):
                total.update(f"{name}\0{hashlib.sha256(text.encode()).hexdigest()}\n".encode())
        ci = self.matrix.common.ci
        return _Print(
            whole=total.hexdigest(),
            runner=ci.runners.get(target.platform) if ci else None,
            parts=lambda: tuple(parts(self.project, plan) for plan in plans),
        )


def _fallback(project: Project, matrix: Matrix, target: Target) -> Plan:
    """The plan where no upstream host can be reached."""
    recipes = matrix.common.kernels
    replaced = {
        name: KernelSource(kind="fallback", identity=fallback.wheel)
        for name in target.kernels
        if (fallback := recipes[name].source.fallback) is not None
    }
    return make_plan(project, matrix, target, source=fallback_source(matrix), kernel_sources=replaced)


def _verdict(name: str, was: _Print, now: _Print, old: Matrix, new: Matrix) -> Verdict:
    if was.runner != now.runner:
        return Verdict(target=name, touched=True, why=f"runs on {now.runner}, no more on {was.runner}")
    if was.whole == now.whole:
        why = "what it is made from is the same"
        return Verdict(target=name, touched=False, why=why)
    told: list[str] = []
    for then, today in zip(was.parts(), now.parts(), strict=True):
        for part in dict.fromkeys((*today, *then)):
            found = differing(then.get(part, {}), today.get(part, {}))
            told += [
                f"{part}: {d.text()}" for d in found if d.component not in ("key", "recipe", "profile.json")
            ]
    if not told:
        told = ["a rendered file differs"]
    if old.common.image != new.common.image:
        told.insert(0, f"image {old.common.image} → {new.common.image}")
    return Verdict(target=name, touched=True, why=_few(tuple(dict.fromkeys(told)), "; "))


def _few(names: Sequence[str], between: str = ", ") -> str:
    shown = between.join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
