"""comfyrun queue check"""

from __future__ import annotations

import os
from dataclasses import asdict

import click
from rich.markup import escape

from comfywork.cli.app import consoles, json_option, show_json

_MARKS = {"ok": "[green]ok[/]     ", "failed": "[bold red]failed[/] ", "skipped": "[dim]skipped[/]"}


@click.command("check")
@json_option
def command(*, as_json: bool) -> int:
    """Tell whether jobs will run, and what to do where not.

    The way to Redis, the storage, a worker that is there, its models. Exit code 0, 69 when something does not work
    here, 77 when Redis refuses the password or the user.
    """
    from comfywork.checks import check, exit_code
    from comfywork.settings import Settings

    settings = Settings.from_environment()
    steps = check(settings, os.environ)
    code = exit_code(steps)
    if as_json:
        show_json(
            {"queue": settings.redis.address, "ok": code == 0, "steps": [asdict(step) for step in steps]}
        )
        return code
    data, _ = consoles()
    data.print(settings.redis.address, markup=False)
    for step in steps:
        data.print(f"{_MARKS[step.status]} {step.name:<16} {escape(step.message)}")
        if step.hint and step.status == "failed":
            data.print(f"        next: {escape(step.hint)}")
    return code
