"""comfyrun cancel ID…"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from comfywork.cli.app import consoles, door_options, json_option, show_json, state_of, tell, tenant_option
from comfywork.errors import ComfyworkError, QueueError, RefusedError

if TYPE_CHECKING:
    from comfywork.door import Door


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@tenant_option(help="Only if they are this tenant's.")
@door_options
@json_option
def command(*, door: Door, job_ids: tuple[str, ...], tenant: str | None, as_json: bool) -> int:
    """Cancel jobs.

    A waiting job ends at once, one that runs as soon as its worker hears of it; one that has ended stays as it is.
    """
    data, _ = consoles()
    found, code = [], 0
    for job_id in job_ids:
        try:
            job = door.cancel(job_id, tenant)
        except (QueueError, RefusedError):
            raise
        except ComfyworkError as error:
            code = tell(error)
            continue
        found.append(job.as_dict())
        if not as_json:
            data.print(f"{job.id}  {state_of(job)}", markup=False)
    if as_json:
        show_json(found)
    return code
