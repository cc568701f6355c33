"""comfyrun submit WORKFLOW.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comfywork import names
from comfywork.cli.app import consoles, door_options, json_option, show_json, state_of, tenant_option
from comfywork.errors import INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from comfywork.broker import Submission
    from comfywork.door import Door
    from comfywork.views import JobView


@click.command()
@click.argument("workflow", type=click.Path(path_type=Path, allow_dash=True))
@tenant_option(help="For whom (default: the token's own, or `default`).")
@click.option("--priority", default="normal", show_default=True, help=" · ".join(names.PRIORITIES))
@click.option(
    "--id", "job_id", metavar="UUID", help="The job's id; the same submission again is the same job."
)
@click.option(
    "--set", "changes", multiple=True, metavar="NODE.INPUT=VALUE", help="Change an input: --set 3.seed=42"
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE|KEY",
    help="The file, or a key in the storage, for a name in the workflow.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="How long it may run.")
@click.option("--wait", is_flag=True, help="Until it has ended; exit code 1 unless it is completed.")
@click.option(
    "--wait-timeout", type=float, metavar="SECONDS", help="Wait no longer than that (exit code 75)."
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Wait, and save its outputs there."
)
@click.option("--cancel-on-interrupt", is_flag=True, help="Ctrl-C while waiting cancels the job.")
@door_options
@json_option
def command(
    *,
    door: Door,
    workflow: Path,
    tenant: str | None,
    priority: str,
    job_id: str | None,
    changes: tuple[str, ...],
    inputs: tuple[str, ...],
    timeout: float | None,
    wait: bool,
    wait_timeout: float | None,
    output: Path | None,
    cancel_on_interrupt: bool,
    as_json: bool,
) -> int:
    """Submit a workflow.

    WORKFLOW is a file in ComfyUI's API format, or - for stdin.
    """
    from comfywork.changes import changed

    submission = _submission(
        changed(_read(workflow), changes),
        tenant=tenant or door.tenant,
        priority=priority,
        job_id=job_id,
        timeout=timeout,
    )
    if output is not None:
        writable(output)
    submission = _with_inputs(door, submission, inputs)
    job = door.submit(submission)
    _, talk = consoles()
    talk.print(f"{job.id}  {state_of(job)}" if not as_json else f"submitted {job.id}")
    if wait or wait_timeout is not None or output is not None:
        return _follow(door, job, wait_timeout, output, cancel=cancel_on_interrupt, as_json=as_json)
    if as_json:
        show_json(job.as_dict())
    else:
        print(job.id)
    return 0


def _read(path: Path) -> object:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} is not text", hint="a PNG holds its workflow inside: in ComfyUI, Workflow → Export (API)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path} nests without end") from None


def _submission(
    workflow: object, *, tenant: str, priority: str, job_id: str | None, timeout: float | None
) -> Submission:
    from comfywork import workflow as workflows
    from comfywork.broker import Submission

    graph = workflows.checked(workflow, sys.maxsize)
    names.check_tenant(tenant)
    if priority not in names.PRIORITIES:
        from comfywork.errors import nearest

        raise ConfigError(
            f"no priority {priority!r}{nearest(priority, names.PRIORITIES)}: {', '.join(names.PRIORITIES)}"
        )
    submission = Submission(workflow=graph, tenant=tenant, priority=priority, timeout=timeout)
    if job_id is not None:
        from dataclasses import replace

        submission = replace(submission, id=names.check_job(job_id))
    return submission


def _with_inputs(door: Door, submission: Submission, given: tuple[str, ...]) -> Submission:
    """Each checked before the first is sent."""
    from dataclasses import replace

    from comfywork import workflow as workflows
    from comfywork.errors import nearest

    known = workflows.texts(submission.workflow)
    pairs = []
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"--input {pair}: NAME=FILE, where NAME stands in the workflow")
        if name not in known:
            raise ConfigError(f"--input {name}: the workflow names no such file{nearest(name, known)}")
        is_key = value.startswith(f"{submission.tenant}/inputs/") and not Path(value).exists()
        if not is_key and not Path(value).is_file():
            raise ConfigError(f"--input {name}: there is no file {value}")
        pairs.append((name, value, is_key))
    keys = {}
    for name, value, is_key in pairs:
        if is_key:
            keys[name] = value
            continue
        path = Path(value)
        with path.open("rb") as file:
            keys[name] = door.upload(submission.tenant, path.name, file, path.stat().st_size)
    return replace(submission, inputs=keys)


def writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror or error}") from None


def _follow(
    door: Door, job: JobView, timeout: float | None, output: Path | None, *, cancel: bool, as_json: bool
) -> int:
    from comfywork.cli.following import Board

    _, talk = consoles()
    try:
        with Board(talk) as board:
            job = door.wait(job.id, timeout=timeout, progress=board.show)
    except KeyboardInterrupt:
        if cancel:
            job = door.cancel(job.id)
            talk.print(f"\ninterrupted: {job.id} is {'being cancelled' if job.cancelling else job.state}")
        else:
            talk.print(f"\ninterrupted: {job.id} goes on without you")
            talk.print(f" next: comfyrun status {job.id} --wait   or   comfyrun cancel {job.id}")
        return INTERRUPTED
    return finish(door, job, output, as_json=as_json)


def finish(door: Door, job: JobView, output: Path | None, *, as_json: bool) -> int:
    """Save the outputs, show the end; 0 when it is completed, else 1."""
    _, talk = consoles()
    if output is not None and job.state == "completed":
        from comfywork.client import save

        for found in job.outputs:
            save(door.download(job, found), output / found.file)
    if as_json:
        show_json(job.as_dict())
    elif job.state == "completed":
        for found in job.outputs:
            print(output / found.file if output is not None else found.key)
    elif job.failure:
        talk.print(f"[bold red]{job.failure.kind}:[/] ", end="")
        talk.print(job.failure.message, markup=False)
        if job.failure.details:
            talk.print(job.failure.details.strip(), markup=False)
    return 0 if job.state == "completed" else 1
