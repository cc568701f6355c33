"""comfyrun status ID"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from comfywork.cli.app import consoles, door_options, json_option, show_json, span, state_of, tenant_option
from comfywork.errors import INTERRUPTED

if TYPE_CHECKING:
    from comfywork.door import Door
    from comfywork.views import JobView


@click.command()
@click.argument("job_id", metavar="ID")
@tenant_option(help="Only if it is this tenant's.")
@click.option("--wait", is_flag=True, help="Until it has ended.")
@click.option(
    "--wait-timeout", type=float, metavar="SECONDS", help="Wait no longer than that (exit code 75)."
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Wait, and save its outputs there."
)
@door_options
@json_option
def command(
    *,
    door: Door,
    job_id: str,
    tenant: str | None,
    wait: bool,
    wait_timeout: float | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Show a job.

    Exit code 1 when it has failed.
    """
    if not (wait or wait_timeout is not None or output is not None):
        job = door.status(job_id, tenant)
        show_json(job.as_dict()) if as_json else _show(job)
        return 1 if job.state == "failed" else 0
    from comfywork.cli.following import Board
    from comfywork.cli.submit import finish, writable

    if output is not None:
        writable(output)
    _, talk = consoles()
    try:
        with Board(talk) as board:
            job = door.wait(job_id, timeout=wait_timeout, progress=board.show, tenant=tenant)
    except KeyboardInterrupt:
        talk.print(f"\ninterrupted: {job_id} goes on without you")
        return INTERRUPTED
    return finish(door, job, output, as_json=as_json)


def _show(job: JobView) -> None:
    rows = [
        ("job", job.id),
        ("state", state_of(job)),
        ("tenant", job.tenant),
        ("priority", job.priority),
        ("attempts", str(job.attempts)),
    ]
    if job.started is not None:
        rows.append(("waited", span(job.started - job.submitted)))
    if job.worker:
        rows.append(("worker", job.worker))
    rows += [("output", f"{output.key}  {output.media_type}, {output.size} bytes") for output in job.outputs]
    if job.failure and job.failure.details:
        rows.append(("details", job.failure.details.strip()))
    data, _ = consoles()
    for name, value in rows:
        data.print(f"{name:<10}{value}", markup=False)
