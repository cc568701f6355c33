"""The command line: one small file a verb, loaded when it is called."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING

import click

from comfywork import __version__
from comfywork.errors import INTERRUPTED, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFECT = 70
"""Exit code for what is none of our failures but our defect (EX_SOFTWARE)."""

# Verb → its first line of help. Kept here so that --help imports no verb; a test holds both equal.
VERBS = {
    "agent": "Take jobs from the queue for the ComfyUI beside it; `comfyrun worker` starts it.",
    "api": "Serve the HTTP API and the queue's page.",
    "cancel": "Cancel jobs.",
    "dashboard": "Serve RQ's own dashboard of the queue.",
    "jobs": "List jobs.",
    "models": "Models: listed, fetched, verified, counted.",
    "queue": "Keep the queue: check, clean, backup, restore, load-test.",
    "status": "Show a job.",
    "submit": "Submit a workflow.",
    "workers": "List workers.",
}


class Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = f"comfywork.cli.{cmd_name}"
        try:
            command: click.Command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            ctx.fail(f"`{cmd_name}` is not in this installation ({error.name} is missing)")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="comfywork")
def cli() -> None:
    """Jobs for ComfyUI from a queue."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; every failure ends here as one message and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    try:
        result = cli.main(
            args=list(argv) if argv is not None else None, prog_name="comfyrun", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `comfyrun jobs | head`: nobody reads on, which is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # noqa: BLE001  (the one place where failures end)
        return _tell(error)
    return result if isinstance(result, int) else 0


def _tell(error: Exception) -> int:
    from comfywork.cli.app import tell
    from comfywork.errors import ComfyworkError, ConfigError

    if os.environ.get("DEBUG", "").lower() in ("1", "true", "yes", "on"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ComfyworkError):
        return tell(error)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOSPC:
            return tell(ConfigError("the disk is full"))
        where = f"{error.filename}: " if error.filename else ""
        return tell(ConfigError(f"{where}{error.strerror or error}"))
    tell(
        ComfyworkError(
            f"a defect of comfywork: {type(error).__name__}: {error}",
            hint="DEBUG=true before the command shows where; please report it with that",
        )
    )
    return DEFECT
