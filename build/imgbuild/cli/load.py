from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgbuild.cli.finding import engine_option, the_engine

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("load")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@engine_option
@click.option("--check", "only_check", is_flag=True, help="Check the file, and take nothing in.")
@click.pass_obj
def command(app: App, path: Path, engine: str, only_check: bool) -> None:
    """Take in the image of a file that imgbuild save wrote.

    Every blob is held against its digest before the engine gets the first of them.
    """
    from imgbuild.carry import load
    from imgbuild.engines.store import store
    from imgbuild.report import Meter, say
    from imgbuild.subject import check_engine

    own = the_engine(app, engine)
    if not only_check:
        check_engine(own)
    listing = load(None if only_check else store(own), path, meter=Meter, say=say)
    if only_check:
        say(f"{path} is whole: {listing.reference} for {listing.platform}, {len(listing.blobs)} blobs")
        return
    target = listing.labels.get("imgbuild.target")
    say(f"{engine} has {listing.reference} ({listing.platform}); start it with:")
    named = f"--target {target}" if target and listing.reference.endswith(f":{target}") else ""
    engine_words = " --engine podman" if engine == "podman" else ""
    click.echo(f"imgbuild run {named}{engine_words}" if named else f"{engine} run --rm {listing.reference}")
