from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("df")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(app: App, as_json: bool) -> None:
    """Show what images, build cache, bases, sources and logs take on disk."""
    import json
    from dataclasses import asdict

    from imgbuild.cli.prune import engine_or_none
    from imgbuild.housekeeping import WHAT, usage
    from imgbuild.report import human, table

    rows = usage(engine_or_none(app), app.cache, app.matrix().common.image)
    if as_json:
        click.echo(json.dumps([asdict(r) for r in rows], indent=2))
        return
    table(
        "",
        ["kind", "count", "size", "what"],
        [[r.kind, str(r.count), human(r.bytes), WHAT[r.kind]] for r in rows],
        right=(1, 2),
    )
