"""comfyrun queue load-test"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from comfywork.cli.app import consoles, direct, json_option, show_json
from comfywork.errors import INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from comfywork.loadtest import LoadTest, Report


@click.command("load-test")
@click.option("--jobs", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--tenants", type=click.IntRange(1, 999), default=20, show_default=True)
@click.option(
    "--rate", type=click.FloatRange(0), default=0.0, help="Jobs a second (default: as fast as they go)."
)
@click.option(
    "--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds for them all."
)
@click.option(
    "--workflow",
    type=click.Path(path_type=Path),
    help="Instead of one that needs no model; seeds are varied.",
)
@click.option("--keep", is_flag=True, help="Leave the jobs and their files.")
@json_option
def command(
    *, jobs: int, tenants: int, rate: float, timeout: float, workflow: Path | None, keep: bool, as_json: bool
) -> int:
    """Submit many jobs, and tell how long they took.

    Tenants are called load-001 and so on. Jobs and files are removed afterwards. Exit code 1 unless all are completed.
    """
    from comfywork import workflow as workflows
    from comfywork.loadtest import LoadTest

    graph = None
    if workflow is not None:
        try:
            graph = workflows.checked(json.loads(workflow.read_text(encoding="utf-8")), 1 << 62)
        except ValueError:
            raise ConfigError(f"{workflow} is no JSON") from None
    door = direct()
    _, talk = consoles()
    if not door.broker.workers():
        talk.print("no worker is there: the jobs wait until one comes")
    test = LoadTest(door.broker, jobs=jobs, tenants=tenants, rate=rate, timeout=timeout, workflow=graph)
    try:
        with talk.status("submitting") as status:
            report = test.run(lambda sent, ended: status.update(f"{sent} of {jobs} submitted, {ended} ended"))
    except KeyboardInterrupt:
        talk.print("\ninterrupted: what has not ended is cancelled")
        test.cancel()
        return INTERRUPTED
    finally:
        if not keep:
            _remove(test, tenants)
    show_json(report.as_dict()) if as_json else _show(report)
    return 0 if report.completed == report.jobs else 1


def _remove(test: LoadTest, tenants: int) -> None:
    from comfywork.cli.app import tell
    from comfywork.errors import ComfyworkError
    from comfywork.loadtest import tenant_of
    from comfywork.upkeep import clean

    try:
        test.cancel()
        door = direct()
        for number in range(1, tenants + 1):
            clean(door.broker, older=0, tenant=tenant_of(number), storage=door.storage)
    except ComfyworkError as error:
        tell(error)


def _show(report: Report) -> None:
    data, _ = consoles()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("seconds", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="left" if name == "seconds" else "right")
    rows = (
        ("waiting", report.waited),
        ("running", report.ran),
        ("whole", report.whole),
        ("the call that submits", report.submitting),
    )
    for name, spread in rows:
        if spread is not None:
            cells = (spread.p50, spread.p90, spread.p99, spread.maximum)
            table.add_row(name, *(f"{value:.3f}" for value in cells))
    data.print(table)
    counts = [f"{report.completed} completed", f"{report.failed} failed", f"{report.unfinished} not ended"]
    counts += [f"{count} by {kind}" for kind, count in sorted(report.failures.items())]
    data.print(f"{report.jobs} jobs of {report.tenants} tenants: {', '.join(counts)}")
    data.print(f"{report.throughput:.2f} jobs/s over {report.seconds:.1f} s; {report.limited} met a limit")
    if report.unfairness is not None:
        data.print(f"longest mean wait of a tenant over the shortest: {report.unfairness:.2f}")
