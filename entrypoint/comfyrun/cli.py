"""comfyrun serve (default) · worker · check · health · nodes · shell, and the verbs of the queue."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyrun import __version__
from comfyrun.errors import (
    INTERRUPTED,
    ComfyrunError,
    ConfigError,
    HardwareError,
    KernelError,
    MachineError,
    nearest,
)
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from comfyrun import overlay
    from comfyrun.companion import Companion
    from comfyrun.launch import Launch, Machine
    from comfyrun.logs import Level
    from comfyrun.preflight.report import Report
    from comfyrun.preflight.system import System
    from comfyrun.role import Role

_USAGE = """\
usage: comfyrun [serve] [--print [--json]] [ARGS ...]   start ComfyUI; ARGS are ComfyUI's own flags
       comfyrun worker [--print [--json]] [ARGS ...]    the same on loopback, with jobs from a queue (REDIS_HOST, ...)
       comfyrun front --tenant NAME [ARGS ...]          the same without a GPU: its prompts become jobs of a queue
       comfyrun check [--json] [ARGS ...]               what serve would meet here: GPU, driver, kernels, volumes
       comfyrun check --queue [--json]                  can the queue be reached: name, TCP, TLS, password, rights
       comfyrun health [--ready] [--json]               exit 0 when it is alive (ready: takes jobs)
       comfyrun nodes install|list|remove|sync ...      custom nodes and their packages, on the data volume
       comfyrun shell [COMMAND ...]                     a shell, or a command, in ComfyUI's environment
       comfyrun submit|status|cancel|jobs ...           jobs of the queue; each has its own --help
       comfyrun workers|queue|api|dashboard|models ...  who works, what waits; over HTTP; RQ's dashboard; models
       comfyrun --version | --help

variables, which may also stand in /data/comfyrun.env as lines NAME=value:
{variables}
ComfyUI's own flags: comfyrun shell python {main} --help
exit codes: 2 wrong configuration, 69 not possible here (directory, port), 75 no more jobs possible (start it again),
  76 no GPU for this image, 77 a kernel failed under COMFY_STRICT, 0 after an orderly stop, else ComfyUI's own
"""

VERBS = ("serve", "worker", "front", "check", "health", "nodes", "shell")
HANDED = ("submit", "status", "cancel", "jobs", "workers", "queue", "api", "dashboard", "models")
"""What comfywork does, with the libraries of /opt/work."""

# Where to look after a start that was refused.
_NEXT: Mapping[type[ComfyrunError], str] = {
    ConfigError: "nothing was started; what can be set: comfyrun --help",
    MachineError: "nothing was started; all that was looked at: comfyrun check",
    HardwareError: "nothing was started; all that was looked at: comfyrun check",
    KernelError: "nothing was started; all that was looked at: comfyrun check",
}


def usage(layout: Layout) -> str:
    from comfyrun import settings  # noqa: PLC0415

    return _USAGE.format(variables=settings.described(), main=layout.main)


def main(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    layout: Layout | None = None,
    system: System | None = None,
) -> int:
    # A variable may hold bytes that are no UTF-8; showing it must not be what fails.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = os.environ if environ is None else environ
    _Form.json = given.get("COMFY_LOG", "").lower() == "json"
    rest = list(sys.argv[1:] if arguments is None else arguments)
    verb = rest.pop(0) if rest and not rest[0].startswith("-") else "serve"
    try:
        return _run(verb, rest, given, layout or Layout(), system)
    except ComfyrunError as error:
        from comfyrun import redact  # noqa: PLC0415

        hide = redact.of(given)
        for message in error.messages:
            _say(hide.text(message), "error")
        if verb in ("serve", "worker") and type(error) in _NEXT:
            _say(_NEXT[type(error)])
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `comfyrun serve --print | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(
    verb: str, arguments: list[str], environ: Mapping[str, str], layout: Layout, system: System | None
) -> int:
    if verb in ("serve", "worker", "check") and arguments[:1] in (["--help"], ["-h"]):
        print(usage(layout), end="")
        return 0
    if verb == "check" and "--queue" in arguments:
        return _hand_over("queue", ["check", *(a for a in arguments if a != "--queue")], environ, layout)
    if verb in HANDED:
        return _hand_over(verb, arguments, environ, layout)
    starts = {"serve": _serve, "worker": _worker, "front": _front, "check": _check}
    if verb in starts:
        return starts[verb](arguments, environ, layout, system)
    if verb in ("nodes", "shell"):
        return {"nodes": _nodes, "shell": _shell}[verb](arguments, environ, layout)
    if verb == "health":
        return _health(arguments, environ, layout)
    known = (*VERBS, *HANDED)
    raise ConfigError(
        f"comfyrun has no command {verb!r}{nearest(verb, known)}: it has {', '.join(known)}. "
        "To run a program of the image: comfyrun shell PROGRAM ..."
    )


def _serve(arguments: list[str], environ: Mapping[str, str], layout: Layout, system: System | None) -> int:
    if arguments == ["--version"]:
        print(f"comfyrun {__version__}")
        return 0
    from comfyrun.preflight import run  # noqa: PLC0415
    from comfyrun.preflight import system as real  # noqa: PLC0415

    wanted = {name for name in ("--print", "--json") if name in arguments}
    machine = observe(environ)
    plan = _planner(layout, environ, [a for a in arguments if a not in wanted], machine)
    depth = run.PREVIEW if wanted else run.SERVE
    launch, found = run.preflight(plan, system or real.this_machine(), layout, machine, depth)
    if wanted:
        from comfyrun import report  # noqa: PLC0415

        print(report.as_json(launch) if "--json" in wanted else report.as_text(launch), flush=True)
        return 0
    return _start(launch, found, layout)


def _front(arguments: list[str], environ: Mapping[str, str], layout: Layout, system: System | None) -> int:
    from comfyrun import front  # noqa: PLC0415

    if arguments[:1] in (["--help"], ["-h"]):
        print(front.USAGE, end="")
        return 0
    return _serve(*front.read(arguments, environ, _with_file(environ)), layout, system)


def _worker(arguments: list[str], environ: Mapping[str, str], layout: Layout, system: System | None) -> int:
    import socket  # noqa: PLC0415

    from comfyrun import fleet, redact, report, scratch, worker  # noqa: PLC0415
    from comfyrun.preflight import run  # noqa: PLC0415
    from comfyrun.preflight import system as real  # noqa: PLC0415

    wanted = {name for name in ("--print", "--json") if name in arguments}
    worker.refuse_without_work(layout, "worker")
    machine, known = observe(environ), _with_file(environ)
    settings = worker.read(known, socket.gethostname())
    given = [a for a in arguments if a not in wanted]
    shares = fleet.shares(settings, given, environ, layout, system or real.this_machine())
    if len(shares) > 1 and not wanted:
        _Form.json = known.get("COMFY_LOG", "").lower() == "json"
        return fleet.start(shares, settings, given, environ, known, "json" if _Form.json else "text", _say)
    environ = {**environ, **shares[0].environment}
    if shares[0].environment and not wanted:
        _say(f"its GPU memory is bounded by {shares[0].words}")
    plan = _planner(layout, environ, given, machine, worker.role(settings))
    depth = run.PREVIEW if wanted else run.SERVE
    launch, found = run.preflight(plan, system or real.this_machine(), layout, machine, depth)
    agent = worker.companion(launch, settings, layout)
    if wanted:
        shown = report.as_json(launch) if "--json" in wanted else report.as_text(launch)
        print(shown, flush=True)
        if "--json" not in wanted:
            print(redact.of(agent.environment).text("\n".join(worker.as_lines(agent))), flush=True)
        return 0
    if found.failure is None:
        scratch.claim(launch.cache, settings.id)
    return _start(launch, found, layout, agent, worker.told(settings, agent))


def _hand_over(verb: str, arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    from comfyrun import worker  # noqa: PLC0415

    worker.refuse_without_work(layout, verb)
    return _execute([*layout.work_command, verb, *arguments], _with_file(environ))


def _with_file(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, over what stands in comfyrun.env: the queue's settings may stand there too."""
    from comfyrun import envfile, settings  # noqa: PLC0415

    path = settings.file_path(environ)
    file = envfile.read(Path(path)) if path else None
    return {**(file.variables if file else {}), **environ}


def _check(arguments: list[str], environ: Mapping[str, str], layout: Layout, system: System | None) -> int:
    from comfyrun import fleet, redact, worker  # noqa: PLC0415
    from comfyrun.preflight import report, run  # noqa: PLC0415
    from comfyrun.preflight import system as real  # noqa: PLC0415

    machine = observe(environ)
    given = [a for a in arguments if a != "--json"]
    plan = _planner(layout, environ, given, machine)
    launch, found = run.preflight(plan, system or real.this_machine(), layout, machine, run.CHECK)
    if environ.get("NUM_WORKERS") or environ.get("WORKER_GPU_MEMORY_LIMIT"):
        shares = fleet.shares(worker.read(environ, ""), given, environ, layout, system or real.this_machine())
        found = dataclasses.replace(found, findings=(*found.findings, *worker.findings(shares)))
    hide = redact.of(launch.environment)
    print(
        report.as_json(found, hide) if "--json" in arguments else hide.text(report.as_text(found)), flush=True
    )
    return found.exit_code


def _start(
    launch: Launch,
    found: Report,
    layout: Layout,
    agent: Companion | None = None,
    told: Mapping[str, object] | None = None,
) -> int:
    from comfyrun import client, logs, overlay, port, process, redact, report, worker  # noqa: PLC0415

    _Form.json = launch.log == "json"
    hide = redact.of(launch.environment)
    for note in launch.notes:
        _say(hide.text(note))
    for line in found.notes:
        _say(hide.text(line), "warning")
    if found.failure is not None:
        raise found.failure
    port.check(launch.listen, launch.port)
    note = overlay.note(_place(launch, layout)) if launch.nodes else ""
    if note:
        _say(note, "warning")
    _say(hide.text(report.one_line(launch)))
    # The same names are then found beside it (models, output), and what a node writes "here" is kept.
    try:
        os.chdir(launch.workdir)
    except OSError as error:
        raise MachineError(f"{launch.workdir} cannot be entered: {error.strerror}") from None
    more: dict[str, Any] = {} if agent is None else {"companion": agent, "told": told}
    return process.run(
        launch.argv,
        launch.environment if agent is None else worker.without_the_queue(launch.environment),
        client.local(launch.listen, launch.port, tls=launch.tls),
        logs.Log("json" if _Form.json else "text", hide.values),
        float(launch.settings.stop_timeout),
        **more,
    )


def _health(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    from comfyrun import health  # noqa: PLC0415

    workers = environ.get("NUM_WORKERS", "")
    count = int(workers) if workers.isdecimal() else 1

    strange = [a for a in arguments if a not in ("--ready", "--json")]
    if strange:
        raise ConfigError(f"comfyrun health knows only --ready and --json, not {strange[0]}")
    as_json = "--json" in arguments
    try:
        found = health.check(layout, ready="--ready" in arguments, count=count)
    except health.UnhealthyError as error:
        if not as_json:
            raise
        print(health.unhealthy_as_json(error))
        return error.exit_code
    print(found.as_json() if as_json else found.text)
    return 0


def _nodes(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    from comfyrun import nodes  # noqa: PLC0415

    if not arguments or arguments[0] in ("--help", "-h"):
        print(nodes.USAGE, end="")
        return 0 if arguments else ConfigError.exit_code
    launch = _plan(layout, environ, [], observe(environ))
    return nodes.main(arguments, _place(launch, layout), _say)


def _place(launch: Launch, layout: Layout) -> overlay.Place:
    from comfyrun import overlay  # noqa: PLC0415

    return overlay.Place(
        layout=layout,
        data=launch.workdir,
        cache=launch.cache,
        torch=launch.image.torch,
        environ=launch.environment,
        baked=launch.image.nodes,
    )


def _shell(arguments: list[str], environ: Mapping[str, str], layout: Layout) -> int:
    from comfyrun import directories  # noqa: PLC0415

    machine = observe(environ)
    launch = _plan(layout, environ, [], machine)
    # A shell is what one opens when something is wrong: it comes up whatever the volumes are like.
    with contextlib.suppress(MachineError):
        directories.prepare(launch.directories, machine)
        directories.ready(launch.files, machine)
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    return _execute(arguments or [shell], launch.environment)


def _plan(layout: Layout, environ: Mapping[str, str], arguments: list[str], machine: Machine) -> Launch:
    return _planner(layout, environ, arguments, machine)()


def _planner(
    layout: Layout,
    environ: Mapping[str, str],
    arguments: list[str],
    machine: Machine,
    role: Role | None = None,
) -> Callable[..., Launch]:
    """The pure function with all that is known before the GPU was looked at."""
    from comfyrun import envfile, flagtable, launch, models, profile, settings  # noqa: PLC0415

    path = settings.file_path(environ)
    file = envfile.read(Path(path)) if path else None
    folders = models.look(settings.read(environ, file).models)
    return functools.partial(
        launch.plan,
        image=profile.read(layout.profile),
        table=flagtable.read(layout.flags),
        layout=layout,
        environ=environ,
        arguments=arguments,
        machine=dataclasses.replace(machine, folders=folders),
        file=file,
        role=role,
    )


def observe(environ: Mapping[str, str]) -> Machine:
    import pwd  # noqa: PLC0415

    from comfyrun.launch import Machine  # noqa: PLC0415

    try:
        user: str | None = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = None
    home = environ.get("HOME", "")
    try:
        writable = home not in ("", "/") and os.access(home, os.W_OK | os.X_OK)
    except ValueError:  # a NUL in it
        writable = False
    return Machine(
        uid=os.getuid(),
        gid=os.getgid(),
        user=user,
        home_writable=writable,
    )


def _execute(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become the program: it gets the signals, and its exit code is the container's."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606  (no shell is wanted)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MachineError(f"{argv[0]} cannot be started: {why}") from None


class _Form:
    """Of comfyrun's own lines."""

    json = False


def _say(message: str, level: Level = "info") -> None:
    if not _Form.json:
        print(f"comfyrun: {message}", file=sys.stderr, flush=True)
        return
    from comfyrun.logs import Log  # noqa: PLC0415

    Log("json").say(message, level)
