"""comfyrun queue sweep"""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from comfywork import quantities
from comfywork.cli.app import consoles, direct, json_option, show_json


@click.command("sweep")
@click.option("--dry-run", is_flag=True, help="Only say what it would be.")
@json_option
def command(*, dry_run: bool, as_json: bool) -> int:
    """Delete files that are older than RETENTION.

    The workers do so once an hour. What a job that has not ended holds or wants stays.
    """
    import redis

    from comfywork.keeping import Keeper
    from comfywork.link import said
    from comfywork.storage import StorageSettings

    door = direct()
    broker = door.broker
    keeper = Keeper(
        broker.connection,
        door.storage,
        StorageSettings.from_environment(os.environ),
        broker.settings.job_timeout,
    )
    try:
        kept = keeper.sweep(dry_run=dry_run)
    except redis.RedisError as error:
        raise said(error, broker.settings.redis) from None
    if as_json:
        show_json({**asdict(kept), "dry_run": dry_run})
        return 0
    out, talk = consoles()
    for tenant, swept in sorted(kept.tenants.items()):
        out.print(f"{tenant}: {swept.objects} files, {quantities.human(swept.size)}")
    all_ = kept.all
    word = "would delete" if dry_run else "deleted"
    talk.print(
        f"{word} {all_.objects} files of {quantities.human(all_.size)}, {kept.staged.objects} of them half done"
    )
    return 0
