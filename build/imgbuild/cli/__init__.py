"""The command line: one small file a verb, loaded when it is called."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgbuild import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

# Verb → its first line of help. Kept here so that --help imports no verb; a test holds both equal.
VERBS = {
    "bake": "Print a bake file that plain `docker buildx bake` accepts.",
    "build": "Build images.",
    "ci": "What a CI needs to know.",
    "compose": "Write compose files for a target.",
    "df": "Show what images, build cache, bases, sources and logs take on disk.",
    "diff": "Show what differs between two images: layers, packages, kernels, environment, labels, sizes.",
    "doctor": "Check this machine, and with --fix mend it.",
    "inspect": "Show what an image is made for, what it holds and how it starts.",
    "load": "Take in the image of a file that imgbuild save wrote.",
    "lock": "Pin every wheel, commit and digest.",
    "plan": "Show targets fully resolved.",
    "prune": "Remove what builds left behind.",
    "publish": "Put images into a registry, with SBOM, provenance and signature; tags last.",
    "pull": "Fetch the image that runs on this machine's GPU.",
    "push": "Put images into a registry, with SBOM, provenance and signature; tags last.",
    "render": "Write the Dockerfiles and everything else that follows from the matrix.",
    "rollback": "Put the image before back into a running deployment.",
    "run": "Run an image the secure standard way.",
    "save": "Write an image into one file, for machines with no network.",
    "sbom": "Print what a published image holds, as CycloneDX, out of its registry.",
    "schema": "Print the JSON Schema of the YAML files.",
    "service": "A systemd service: written, started, stopped, removed.",
    "size": "Show how large the layers of images are, and which of them they share.",
    "targets": "List the targets.",
    "test": "Prove that images work.",
    "update": "Put another image into a running deployment; the one before comes back if it fails.",
    "verify": "Prove that an image or a wheel holds code that its GPU runs.",
    "wheels": "Compiled kernels: kept, looked at, shared with a registry.",
    "why": "Say what differs from the last build of a target, and what that costs.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"imgbuild.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from imgbuild.errors import nearest

            near = nearest(args[0], VERBS)
            ctx.fail(f"no command {args[0]!r}." + (f" Did you mean {near!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imgbuild")
@click.option(
    "--project", type=click.Path(path_type=Path), help="Folder with images/ (default: found from here)."
)
@click.option("-v", "--verbose", is_flag=True, help="Show every program that is started.")
@click.pass_context
def cli(ctx: click.Context, project: Path | None, verbose: bool) -> None:
    """Container images of ComfyUI made for one kind of NVIDIA hardware."""
    from imgbuild.cli.app import App

    if verbose:
        from imgbuild import proc

        proc.verbose = True
    ctx.obj = App(project_option=project, env=dict(os.environ))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; every failure ends here as one message and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    if threading.current_thread() is threading.main_thread():
        # A CI that cancels sends SIGTERM: clean up as after Ctrl-C, secrets lie in a temporary folder.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = cli.main(args=list(argv) if argv is not None else None, standalone_mode=False)
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        print(
            "\ninterrupted: finished parts are kept, and the same command goes on from there", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        # `imgbuild plan | head`: nobody reads on, which is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as e:  # noqa: BLE001  (the one place where failures end)
        return _tell(e)
    return result if isinstance(result, int) else 0


def _tell(error: Exception) -> int:
    """One message; what is none of our failures is a defect of ours, and its traceback is shown."""
    from imgbuild.errors import DiskError, ImgbuildError
    from imgbuild.report import tell_error

    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            hint = "imgbuild df shows what takes it, imgbuild prune frees it"
            return tell_error(DiskError("the disk is full", hint=hint))
        where = f"{error.filename}: " if error.filename else ""
        return tell_error(ImgbuildError(f"{where}{error.strerror or error}"))
    if isinstance(error, ImgbuildError):
        return tell_error(error)
    raise error
