from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import App, parse_sources, source_option, targets_argument, wheels_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("lock")
@targets_argument
@click.option("--check", is_flag=True, help="Only look whether the locks fit the matrix; reads no network.")
@click.option(
    "--upgrade", "upgrade_all", is_flag=True, help="Take the newest version of everything that is not pinned."
)
@click.option(
    "--upgrade-package",
    "packages",
    multiple=True,
    metavar="NAME",
    help="Take the newest version of one package.",
)
@source_option
@wheels_option
@click.pass_obj
def command(
    app: App,
    targets: tuple[str, ...],
    check: bool,
    upgrade_all: bool,
    packages: tuple[str, ...],
    sources: tuple[str, ...],
    wheels: tuple[Path, ...],
) -> None:
    """Pin every wheel, commit and digest.

    Versions that are locked stay, unless the matrix or the requirements
    forbid them or --upgrade says so.
    """
    from imgbuild import locking
    from imgbuild.errors import ConfigError, DriftError
    from imgbuild.report import say
    from imgbuild.sources import tree_version

    matrix, project = app.matrix(), app.project()
    selected = matrix.select(targets, everything=True)
    tree = parse_sources(sources).get("comfyui")
    if check:
        if tree or upgrade_all or packages:
            raise ConfigError("--check only looks: it goes with no --source and no --upgrade")
        problems = locking.check(project, matrix, selected)
        if problems:
            raise DriftError("\n".join(problems), hint="imgbuild lock")
        say(f"the locks of {', '.join(t.name for t in selected)} fit the matrix")
        return
    changed = locking.make(
        project,
        matrix,
        selected,
        settings=app.settings(wheels),
        env=app.env,
        upgrade=packages or (() if upgrade_all else None),
        say=say,
        tree=(tree_version(tree), tree) if tree else None,
    )
    for path in changed:
        say(f"wrote {path}")
    if not changed:
        say("nothing has changed")
