from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(app: App, as_json: bool) -> None:
    """List the targets."""
    import json

    from imgbuild.report import table

    targets = app.matrix().targets.values()
    if as_json:
        rows = [
            {
                "name": t.name,
                "title": t.title,
                "platform": t.platform,
                "compute_capability": t.gpu.compute_capability if t.gpu else None,
                "cuda": t.gpu.cuda if t.gpu else None,
                "memory": t.gpu.memory if t.gpu else None,
                "torch": t.torch,
                "base": t.base,
            }
            for t in targets
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table(
        "",
        ["target", "made for", "platform", "compute", "CUDA", "torch", "base"],
        [
            [
                t.name,
                t.title,
                t.platform,
                t.gpu.compute_capability if t.gpu else "–",
                t.gpu.cuda if t.gpu else "–",
                t.torch,
                t.base,
            ]
            for t in targets
        ],
    )
