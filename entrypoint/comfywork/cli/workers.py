"""comfyrun workers"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from comfywork import quantities
from comfywork.cli.app import age, consoles, door_options, json_option, show_json

if TYPE_CHECKING:
    from comfywork.door import Door


@click.command()
@door_options
@json_option
def command(*, door: Door, as_json: bool) -> int:
    """List workers."""
    found = door.workers()
    if as_json:
        show_json([worker.as_dict() for worker in found])
        return 0
    data, talk = consoles()
    if not found:
        talk.print("no worker; one is started by `comfyrun worker` on a GPU machine")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "state", "job", "GPU", "memory", "models", "image", "done", "failed", "seen"):
        table.add_column(name, overflow="fold")
    for worker in found:
        used = ""
        if worker.memory_total:
            total = quantities.human(worker.memory_total)
            used = f"{quantities.human(worker.memory_used)} of {total}"
        cells = [
            worker.id,
            worker.state,
            worker.job,
            worker.gpu,
            used,
            str(worker.models),
            worker.image,
            str(worker.done),
            str(worker.failed),
            f"{age(worker.seen)} ago" if worker.seen else "",
        ]
        table.add_row(*(escape(cell) for cell in cells))
    data.print(table)
    return 0
