"""What every verb gets: the project, the matrix and the machine's settings, each read once and only when asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imgbuild.matrix import Matrix
    from imgbuild.project import Project
    from imgbuild.settings import Settings

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass
class App:
    project_option: Path | None
    env: Mapping[str, str]
    _project: Project | None = field(default=None, init=False)
    _matrix: Matrix | None = field(default=None, init=False)

    def project(self) -> Project:
        from imgbuild.project import find_project

        if self._project is None:
            self._project = find_project(self.project_option, cwd=Path.cwd())
        return self._project

    def matrix(self) -> Matrix:
        from imgbuild.matrix import load_matrix

        if self._matrix is None:
            self._matrix = load_matrix(self.project().images)
        return self._matrix

    def settings(self, wheels: tuple[Path, ...] = ()) -> Settings:
        from imgbuild.settings import read_settings

        return read_settings(self.env, wheels=wheels)

    @property
    def cache(self) -> Path:
        from imgbuild.project import cache_dir

        return cache_dir(self.env)


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Shell completion of a target's name; silent when the matrix cannot be read."""
    from imgbuild.errors import ImgbuildError

    root = ctx.find_root()
    app = root.obj or App(project_option=root.params.get("project"), env={})
    try:
        return [name for name in app.matrix().targets if name.startswith(incomplete)]
    except (ImgbuildError, OSError):
        return []


targets_argument = click.argument("targets", nargs=-1, metavar="[TARGET]...", shell_complete=complete_target)


def parse_sources(texts: tuple[str, ...], kernels: Iterable[str] = ()) -> dict[str, Path]:
    """`--source NAME=PATH`, several."""
    from imgbuild.errors import ConfigError, nearest

    known = ("comfyui", *kernels)
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--source {text}: write it as NAME=PATH", hint="--source comfyui=../ComfyUI")
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(
                f"--source: no source {name!r}"
                + (f"; did you mean {near!r}?" if near else f"; there are: {', '.join(known)}")
            )
        found[name] = Path(path)
    return found


source_option = click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME=PATH",
    help="A local checkout in place of the pinned source.",
)
wheels_option = click.option(
    "--wheels",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder with wheels, looked at before the index; may be repeated.",
)
base_option = click.option(
    "--base",
    type=click.Choice(["auto", "registry", "bootstrap"]),
    default="auto",
    show_default=True,
    help="Debian from the registry, or bootstrapped from a package mirror.",
)
wheelhouse_option = click.option(
    "--wheelhouse",
    "where",
    metavar="REGISTRY/PATH",
    envvar="IMGBUILD_WHEELHOUSE",
    show_envvar=True,
    help="A registry's compiled kernels: they lie in REGISTRY/PATH/wheelhouse/KERNEL:KEY.",
)


def budget_options(f: F) -> F:
    """How much a compile may take of the machine."""
    f = click.option(
        "--memory-share",
        type=float,
        default=0.75,
        show_default=True,
        help="Of the available memory, for compilers.",
    )(f)
    return click.option(
        "--jobs", type=int, help="Compilers at once; as many as cores and memory allow, if not given."
    )(f)


def command_again(*, without: tuple[str, ...] = ("targets", "everything")) -> str:
    """The command that runs, in words for a shell, to be repeated; by default for those targets that failed."""
    import shlex

    ctx = click.get_current_context()
    words = ["imgbuild", ctx.command.name or ""]
    for option in ctx.command.params:
        value = ctx.params.get(option.name or "")
        given = ctx.get_parameter_source(option.name or "") == click.core.ParameterSource.COMMANDLINE
        if not given or option.name in without:
            continue
        flag = option.opts[-1]
        for one in value if isinstance(value, tuple) else (value,):
            words += [flag] if one is True else [flag, str(one)]
    return shlex.join(words)
