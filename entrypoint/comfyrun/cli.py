"""comfyrun serve (default) · health · shell."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun import __version__
from comfyrun.errors import INTERRUPTED, ComfyrunError, ConfigError, MachineError, nearest
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfyrun.launch import Launch, Machine

USAGE = """\
usage: comfyrun [serve] [--print [--json]] [ARGS ...]   start ComfyUI; ARGS are ComfyUI's own flags
       comfyrun health [--ready]                        exit 0 when it is alive (ready: takes jobs)
       comfyrun shell [COMMAND ...]                     a shell, or a command, in ComfyUI's environment
       comfyrun --version | --help

variables: COMFY_PROFILE, COMFY_PORT, COMFY_LISTEN, COMFY_ARGS, COMFY_DATA, COMFY_CACHE
exit codes: 2 wrong configuration, 69 not possible here (directory, port), else ComfyUI's own
"""

VERBS = ("serve", "health", "shell")


def main(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> int:
    # A variable may hold bytes that are no UTF-8; showing it must not be what fails.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(
            list(sys.argv[1:] if arguments is None else arguments),
            os.environ if environ is None else environ,
            layout or Layout(),
        )
    except ComfyrunError as error:
        for message in error.messages:
            _say(message)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `comfyrun serve --print | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    verb = "serve"
    if arguments and not arguments[0].startswith("-"):
        verb = arguments.pop(0)
    match verb:
        case "serve":
            return _serve(arguments, environ, layout)
        case "health":
            return _health(arguments, layout)
        case "shell":
            return _shell(arguments, environ, layout)
        case _:
            raise ConfigError(
                f"comfyrun has no command {verb!r}{nearest(verb, VERBS)}: it has {', '.join(VERBS)}. "
                "To run a program of the image: comfyrun shell PROGRAM ..."
            )


def _serve(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    if arguments[:1] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if arguments == ["--version"]:
        print(f"comfyrun {__version__}")
        return 0
    wanted = {name for name in ("--print", "--json") if name in arguments}
    machine = observe(environ)
    launch = _plan(layout, environ, [a for a in arguments if a not in wanted], machine)
    if wanted:
        from comfyrun import report  # noqa: PLC0415

        print(report.as_json(launch) if "--json" in wanted else report.as_text(launch), flush=True)
        return 0
    return _start(launch, machine)


def _start(launch: Launch, machine: Machine) -> int:
    from comfyrun import directories, port, report  # noqa: PLC0415

    for note in launch.notes:
        _say(note)
    directories.prepare(launch.directories, machine)
    port.check(launch.listen, launch.port)
    _say(report.one_line(launch))
    # The same names are then found beside it (models, output), and what a node writes "here" is kept.
    try:
        os.chdir(launch.workdir)
    except OSError as error:
        raise MachineError(f"{launch.workdir} cannot be entered: {error.strerror}") from None
    return _execute(launch.argv, launch.environment)


def _health(arguments: list[str], layout: Layout) -> int:
    from comfyrun import health  # noqa: PLC0415

    strange = [a for a in arguments if a != "--ready"]
    if strange:
        raise ConfigError(f"comfyrun health knows only --ready, not {strange[0]}")
    print(health.check(layout, ready=bool(arguments)))
    return 0


def _shell(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    from comfyrun import directories  # noqa: PLC0415

    machine = observe(environ)
    launch = _plan(layout, environ, [], machine)
    # A shell is what one opens when something is wrong: it comes up whatever the volumes are like.
    with contextlib.suppress(MachineError):
        directories.prepare(launch.directories, machine)
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    return _execute(arguments or [shell], launch.environment)


def _plan(layout: Layout, environ: Mapping[str, str], arguments: list[str], machine: Machine) -> Launch:
    from comfyrun import flagtable, launch, profile  # noqa: PLC0415

    return launch.plan(
        image=profile.read(layout.profile),
        table=flagtable.read(layout.flags),
        layout=layout,
        environ=environ,
        arguments=arguments,
        machine=machine,
    )


def observe(environ: Mapping[str, str]) -> Machine:
    import pwd  # noqa: PLC0415

    from comfyrun.launch import Machine  # noqa: PLC0415

    try:
        user: str | None = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = None
    home = environ.get("HOME", "")
    return Machine(
        uid=os.getuid(),
        gid=os.getgid(),
        user=user,
        home_writable=home not in ("", "/") and os.access(home, os.W_OK | os.X_OK),
    )


def _execute(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become the program: it gets the signals, and its exit code is the container's."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606  (no shell is wanted)
    except (OSError, ValueError) as error:
        raise MachineError(f"{argv[0]} cannot be started: {error}") from None


def _say(message: str) -> None:
    print(f"comfyrun: {message}", file=sys.stderr, flush=True)
