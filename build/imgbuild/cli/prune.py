from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.engines.docker import Docker


@click.command("prune")
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option("--all", "everything", is_flag=True, help="Every kind.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(app: App, kinds: tuple[str, ...], everything: bool, dry_run: bool, yes: bool) -> None:
    """Remove what builds left behind.

    Kinds: images, build-cache (the default), bases, sources, wheelhouse, publish, logs. Only what imgbuild made is
    touched, apart from the build cache, which is the engine's.
    """
    from imgbuild.errors import ConfigError, nearest
    from imgbuild.housekeeping import KINDS, prune
    from imgbuild.report import human, say

    chosen = KINDS if everything else kinds or ("build-cache",)
    if strange := set(chosen) - set(KINDS):
        near = nearest(min(strange), KINDS)
        known = f"did you mean {near!r}?" if near else f"there are: {', '.join(KINDS)}"
        raise ConfigError(f"no kind {min(strange)!r}; {known}")
    engine, repository = engine_or_none(app), app.matrix().common.image
    if not dry_run and not yes:
        for item in prune(engine, app.cache, repository, chosen, dry_run=True):
            say(f"{item.what}: {human(item.bytes)}")
        if not click.confirm("Remove these?", err=True):
            say("nothing was removed")
            return
    for item in prune(engine, app.cache, repository, chosen, dry_run=dry_run):
        say(f"{'would remove' if dry_run else 'removed'} {item.what}: {human(item.bytes)}")


def engine_or_none(app: App) -> Docker | None:
    """The engine, or a word on stderr that there is none: the cache folder can be looked at all the same."""
    from imgbuild.engines.docker import Docker
    from imgbuild.errors import EngineError
    from imgbuild.report import warn

    engine = Docker(app.env)
    try:
        _ = engine.client
    except EngineError as e:
        warn(e.message)
        return None
    return engine
