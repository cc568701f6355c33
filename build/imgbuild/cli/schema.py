from __future__ import annotations

import click


@click.command("schema")
@click.argument("kind", type=click.Choice(["comfyui", "target"]), default="target")
def command(kind: str) -> None:
    """Print the JSON Schema of the YAML files."""
    from imgbuild.projections import schemas
    from imgbuild.render import pretty

    click.echo(pretty(schemas()[kind]), nl=False)
