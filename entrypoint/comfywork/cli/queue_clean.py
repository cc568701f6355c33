"""comfyrun queue clean"""

from __future__ import annotations

from dataclasses import asdict

import click

from comfywork import quantities
from comfywork.cli.app import consoles, direct, json_option, show_json, tenant_option
from comfywork.errors import ConfigError
from comfywork.views import ENDED, State


@click.command("clean")
@tenant_option(help="Only this tenant's.")
@click.option(
    "--older", default="1d", show_default=True, metavar="TIME", help="Ended so long ago: 90s, 12h, 7d."
)
@click.option(
    "--state", "states", multiple=True, type=click.Choice(ENDED), help="Only these; may be repeated."
)
@click.option("--outputs", is_flag=True, help="Delete their files, too.")
@click.option("--dry-run", is_flag=True, help="Only say what it would be.")
@json_option
def command(
    *, tenant: str | None, older: str, states: tuple[State, ...], outputs: bool, dry_run: bool, as_json: bool
) -> int:
    """Forget jobs that have ended.

    RESULT_TTL does so by itself; files have their own retention (RETENTION).
    """
    from comfywork.upkeep import clean

    try:
        seconds = quantities.seconds(older)
    except ValueError as error:
        raise ConfigError(f"--older: {error}") from None
    door = direct()
    done = clean(
        door.broker,
        older=seconds,
        states=states or ENDED,
        tenant=tenant,
        storage=door.storage if outputs else None,
        dry_run=dry_run,
    )
    if as_json:
        show_json({**asdict(done), "dry_run": dry_run})
        return 0
    _, talk = consoles()
    files = f", {done.files} files of {quantities.human(done.size)}" if outputs else ""
    talk.print(f"{'would forget' if dry_run else 'forgot'} {done.jobs} jobs{files}")
    return 0
