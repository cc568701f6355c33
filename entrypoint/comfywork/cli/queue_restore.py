"""comfyrun queue restore FILE"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from comfywork.cli.app import consoles, direct, json_option, show_json
from comfywork.errors import ConfigError


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@json_option
def command(*, file: Path, as_json: bool) -> int:
    """Submit the jobs of a backup again.

    Under their own ids: what is there already stays as it is, and repeating it does no harm. Outputs that the backup
    lists are looked for in the storage. Exit code 1 when a job was refused or an output is missing.
    """
    from comfywork.upkeep import restore

    door = direct()
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no backup of a queue") from None
    storage = door.storage if '"kind":"output"' in text else None
    done = restore(door.broker, text.splitlines(), storage=storage)
    if as_json:
        show_json(asdict(done))
    else:
        _, talk = consoles()
        talk.print(f"{done.submitted} jobs submitted again, {done.present} were there")
        for trouble in done.refused:
            talk.print(f"refused: {trouble}", markup=False)
        for key in done.missing:
            talk.print(f"not in the storage: {key}", markup=False)
    return 1 if done.refused or done.missing else 0
