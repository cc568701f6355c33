from __future__ import annotations

import click

from imgbuild.cli.app import App, targets_argument


@click.command("bake")
@targets_argument
@click.pass_obj
def command(app: App, targets: tuple[str, ...]) -> None:
    """Print a bake file that plain `docker buildx bake` accepts.

    Its paths are relative to the project's root:
    imgbuild bake > bake.json && docker buildx bake -f bake.json h100
    """
    from imgbuild.plan import make_plans
    from imgbuild.projections import committed_bake_file
    from imgbuild.render import pretty

    matrix = app.matrix()
    plans = make_plans(app.project(), matrix, matrix.select(targets, everything=True))
    click.echo(pretty(committed_bake_file(plans)), nl=False)
