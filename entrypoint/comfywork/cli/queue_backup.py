"""comfyrun queue backup FILE"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from comfywork.cli.app import consoles, direct


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--outputs", is_flag=True, help="And what completed jobs made: keys, sizes and hashes.")
def command(*, file: Path, outputs: bool) -> int:
    """Write down every job that has not ended.

    FILE gets a line of JSON a job, or is - for stdout. Pictures stay where they lie: back up that folder or bucket as
    well. The file holds the workflows of all tenants.
    """
    from comfywork.upkeep import backup

    broker = direct().broker
    counts = {"job": 0, "output": 0}

    def lines() -> list[str]:
        found = []
        for entry in backup(broker, outputs=outputs):
            if entry["kind"] in counts:
                counts[entry["kind"]] += 1
            found.append(json.dumps(entry, separators=(",", ":")) + "\n")
        return found

    if str(file) == "-":
        sys.stdout.writelines(lines())
    else:
        part = file.with_name(f".{file.name}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
                stream.writelines(lines())
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    _, talk = consoles()
    more = f" and {counts['output']} outputs" if outputs else ""
    talk.print(f"{counts['job']} jobs{more} written down")
    return 0
