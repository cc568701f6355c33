from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import targets_argument

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.group("ci")
def command() -> None:
    """What a CI needs to know."""


@command.command("matrix")
@targets_argument
@click.option(
    "--changed-since",
    "revision",
    metavar="REV",
    help="Only the targets that differ from this commit, tag or branch; every doubt gives all. Empty: all.",
)
@click.option("--explain", is_flag=True, help="Say of each target why, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON; it is never anything else.")
@click.pass_obj
def matrix(
    app: App,
    targets: tuple[str, ...],
    revision: str | None,
    explain: bool,
    as_json: bool,  # noqa: ARG001  (what every verb for programs takes)
) -> None:
    """Print the jobs of a CI, a target each, on one line of JSON.

    The form is that of a GitHub matrix: {"include":[{"target":…,"platform":…,"runner":…}]}; with nothing to do,
    {"include":[]}, which GitHub takes for an error, so a workflow asks first.
    """
    from imgbuild.changes import touched
    from imgbuild.cimatrix import jobs, one_line
    from imgbuild.report import say

    whole = app.matrix()
    selected = whole.select(targets, everything=True)
    if revision:
        verdicts = touched(app.project(), whole, selected, revision, env=app.env)
        chosen = {v.target for v in verdicts if v.touched}
        selected = tuple(t for t in selected if t.name in chosen)
        if explain:
            for verdict in verdicts:
                say(f"{verdict.target}: {'' if verdict.touched else 'left out: '}{verdict.why}")
    elif explain:
        for target in selected:
            say(f"{target.name}: no --changed-since, so every target is built")
    click.echo(one_line(jobs(whole, selected)))
