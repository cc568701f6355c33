"""comfyrun queue priority ID high|normal|low"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from comfywork import names
from comfywork.cli.app import consoles, door_options, json_option, show_json, state_of

if TYPE_CHECKING:
    from comfywork.door import Door
    from comfywork.names import Priority


@click.command("priority")
@click.argument("job_id", metavar="ID")
@click.argument("priority", type=click.Choice(names.PRIORITIES))
@door_options
@json_option
def command(*, door: Door, job_id: str, priority: Priority, as_json: bool) -> int:
    """Move a waiting job to another priority."""
    job = door.reprioritise(job_id, priority)
    if as_json:
        show_json(job.as_dict())
    else:
        consoles()[0].print(f"{job.id}  {job.priority}, {state_of(job)}", markup=False)
    return 0
