from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("sbom")
@click.argument("reference", metavar="REGISTRY/PATH:TAG")
@click.option("--platform", metavar="OS/ARCH", help="Of an index: this machine's, if not given.")
@click.pass_obj
def command(app: App, reference: str, platform: str | None) -> None:
    """Print what a published image holds, as CycloneDX, out of its registry.

    The image itself is not pulled.
    """
    from imgbuild.reference import Reference
    from imgbuild.sbom import read_sbom

    click.echo(read_sbom(Reference.parse(reference), platform, env=app.env), nl=False)
