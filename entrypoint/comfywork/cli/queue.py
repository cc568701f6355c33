"""comfyrun queue check|clean|backup|restore|load-test|priority|retry|sweep"""

from __future__ import annotations

import importlib

import click

# Verb → its first line of help; loaded when it is called.
VERBS = {
    "backup": "Write down every job that has not ended.",
    "check": "Tell whether jobs will run, and what to do where not.",
    "clean": "Forget jobs that have ended.",
    "load-test": "Submit many jobs, and tell how long they took.",
    "priority": "Move a waiting job to another priority.",
    "restore": "Submit the jobs of a backup again.",
    "retry": "Run a job that failed or was cancelled once more.",
    "sweep": "Delete files that are older than RETENTION.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"comfywork.cli.queue_{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))


@click.group(cls=_Verbs)
def command() -> None:
    """Keep the queue: check, clean, backup, restore, load-test."""
