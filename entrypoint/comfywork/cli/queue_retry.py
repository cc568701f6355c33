"""comfyrun queue retry ID"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from comfywork.cli.app import door_options, json_option, show_json

if TYPE_CHECKING:
    from comfywork.door import Door


@click.command("retry")
@click.argument("job_id", metavar="ID")
@door_options
@json_option
def command(*, door: Door, job_id: str, as_json: bool) -> int:
    """Run a job that failed or was cancelled once more.

    Under a new id, which is printed.
    """
    job = door.retry(job_id)
    if as_json:
        show_json(job.as_dict())
    else:
        print(job.id)
    return 0
