"""comfyrun jobs"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, get_args

import click
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from comfywork.cli.app import age, consoles, door_options, json_option, show_json, state_of, tenant_option
from comfywork.errors import ConfigError
from comfywork.views import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfywork.door import Door
    from comfywork.views import JobView

STATES: tuple[State, ...] = get_args(State)
_COLOURS = {"completed": "green", "failed": "red", "processing": "cyan", "cancelled": "dim"}


@click.command()
@tenant_option(help="Only this tenant's.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be repeated."
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The latest so many."
)
@click.option("--watch", is_flag=True, help="Keep showing, until Ctrl-C.")
@click.option(
    "--every", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds, for --watch."
)
@door_options
@json_option
def command(
    *,
    door: Door,
    tenant: str | None,
    states: tuple[State, ...],
    limit: int,
    watch: bool,
    every: float,
    as_json: bool,
) -> int:
    """List jobs.

    The latest first.
    """
    if watch and as_json:
        raise ConfigError("--watch shows a table; for a program: comfyrun jobs --json, again and again")
    if watch:
        return _watch(door, tenant, states or None, limit, every)
    found = door.jobs(tenant, states or None, limit)
    if as_json:
        show_json([job.as_dict() for job in found])
    elif found:
        consoles()[0].print(_table(found))
    else:
        consoles()[1].print("no jobs")
    return 0


def _watch(door: Door, tenant: str | None, states: Sequence[State] | None, limit: int, every: float) -> int:
    data, _ = consoles()
    try:
        if not data.is_terminal:
            while True:
                data.print(_table(door.jobs(tenant, states, limit)))
                time.sleep(every)
        with Live(console=data, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                live.update(_table(door.jobs(tenant, states, limit)), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return 0


def _table(found: Sequence[JobView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "tenant", "priority", "age", "state"):
        table.add_column(name, no_wrap=name == "job", overflow="fold")
    for job in found:
        colour = _COLOURS.get(job.state, "default")
        said = f"[{colour}]{escape(state_of(job))}[/]"
        table.add_row(job.id, job.tenant, job.priority, age(job.submitted), said)
    return table
