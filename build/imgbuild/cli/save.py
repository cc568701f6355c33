from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import complete_target
from imgbuild.cli.finding import engine_option, the_engine

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("save")
@click.argument("reference", metavar="[IMAGE]", required=False)
@click.option(
    "-t", "--target", "name", metavar="NAME", shell_complete=complete_target, help="The target's own tag."
)
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="NAME.tar.zst; a file that is there is replaced when the new one is whole.",
)
@click.option(
    "--sbom",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Put this SBOM into the file too (imgbuild sbom prints a published image's).",
)
@engine_option
@click.pass_obj
def command(
    app: App, reference: str | None, name: str | None, path: Path, sbom: Path | None, engine: str
) -> None:
    """Write an image into one file, for machines with no network.

    The file is an OCI layout in a tar, compressed with zstd, with a list of its blobs and their digests; imgbuild load
    checks them all, and docker load reads it too.
    """
    from imgbuild.carry import save
    from imgbuild.engines.store import store
    from imgbuild.errors import ConfigError, SelectionError
    from imgbuild.report import Meter, human, say
    from imgbuild.subject import check_engine

    if reference and name:
        raise ConfigError("IMAGE and --target exclude one another")
    if not reference and not name:
        raise SelectionError("no image was named", hint="imgbuild save --target NAME, or an image's tag")
    if name:
        target = app.matrix().select([name])[0]
        reference = f"{app.matrix().common.image}:{target.name}"
    assert reference is not None
    own = the_engine(app, engine)
    check_engine(own)
    listing = save(
        store(own), reference, path, sbom=sbom.read_bytes() if sbom else None, meter=Meter, say=say
    )
    size = path.stat().st_size
    say(f"{path}: {human(size)}, {len(listing.blobs)} blobs of {human(listing.size)}; take it in with:")
    click.echo(f"imgbuild load {path}")
