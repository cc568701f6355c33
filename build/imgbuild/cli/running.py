"""What `run`, `compose` and `service` share: the options that say how an image is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgbuild.cli.app import App, complete_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgbuild.deploy.deployment import Wishes
    from imgbuild.engines import Engine
    from imgbuild.matrix import Target
    from imgbuild.plan import Plan

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--image", metavar="REF", help="Another image than the target's tag."),
    click.option(
        "--data", metavar="DIR|VOLUME", help="Models, input, output. [default: the volume comfy-data]"
    ),
    click.option(
        "--cache", metavar="DIR|VOLUME", help="Compiled and downloaded. [default: the volume comfy-cache]"
    ),
    click.option("--models", metavar="DIR", multiple=True, help="More models, read-only; may be repeated."),
    click.option("--port", type=int, default=8188, show_default=True, help="Of this machine."),
    click.option("--address", default="127.0.0.1", show_default=True, help="Where the port is published."),
    click.option(
        "--user", metavar="UID[:GID]", help="Who ComfyUI is. [default: the owner of --data, or 1000:1000]"
    ),
    click.option("--gpu", metavar="all|none|UUID,…", help="GPUs or MIG slices. [default: all]"),
    click.option("--memory", metavar="SIZE", help="Limit of host memory, 32g say; switches pinning off."),
    click.option("--shm", metavar="SIZE", help="Shared memory. [default: 16g, without a GPU 1g]"),
    click.option("--stop-timeout", type=int, metavar="SECONDS", help="For jobs at a stop. [default: 8]"),
    click.option("--restart", metavar="POLICY", help="[default: on-failure:5]"),
    click.option(
        "--env",
        "environment",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="COMFY_…, HF_TOKEN; may be repeated.",
    ),
    click.option("--name", help="[default: comfyui-TARGET]"),
)


def running_options(f: F) -> F:
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


target_option = click.option(
    "-t",
    "--target",
    default="auto",
    show_default=True,
    shell_complete=complete_target,
    help="auto: what this machine's GPU asks for.",
)
engine_option = click.option(
    "--engine", "engine_name", type=click.Choice(["docker", "podman"]), default="docker", show_default=True
)


def make_engine(app: App, name: str) -> Engine:
    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.subject import check_engine

    engine = Podman(app.env) if name == "podman" else Docker(app.env)
    if name == "podman":
        engine.check()
    check_engine(engine)
    return engine


def settle_target(app: App, name: str) -> Target:
    """By name, or by this machine's GPU."""
    from imgbuild.deploy.auto import target_for
    from imgbuild.report import say

    matrix = app.matrix()
    if name != "auto":
        return matrix.select([name])[0]
    from imgbuild.doctor.probe import this_machine
    from imgbuild.hardware import look
    from imgbuild.remoteimage import machine_platform

    target, why = target_for(matrix, look(this_machine(app.env).run), machine_platform())
    say(f"{target.name}: this machine has {why}")
    return target


def plan_for(app: App, target: Target) -> Plan:
    from imgbuild.plan import make_plan

    return make_plan(app.project(), app.matrix(), target)


def read_wishes(
    app: App, *, engine: str, words: tuple[str, ...] = (), here: bool = True, **given: Any
) -> Wishes:
    """The options as wishes; folders are looked at, when the engine is on this machine (`here`)."""
    from imgbuild.deploy.deployment import Wishes
    from imgbuild.deploy.folders import owner, refuse_unusable, source_of

    cwd, env = Path.cwd(), app.env
    sources = {
        option: source_of(f"--{option}", given[option], cwd=cwd, env=env) if given[option] else None
        for option in ("data", "cache")
    }
    models = tuple(source_of("--models", text, cwd=cwd, env=env) for text in given["models"])
    mapped = engine == "podman" and os.geteuid() != 0
    data = sources["data"]
    user = given["user"]
    if user is None and data and data.startswith("/") and here and Path(data).is_dir():
        user = owner(data)
        if user.startswith("0:"):  # root's: nobody runs ComfyUI as root without saying so
            user = None
    numbers = user or "1000:1000"
    checked = numbers if ":" in numbers else f"{numbers}:{numbers}"
    folders = [
        (f"--{option}", path, True) for option, path in sources.items() if path and path.startswith("/")
    ]
    folders += [("--models", path, False) for path in models if path.startswith("/")]
    if here and all(part.isdecimal() for part in checked.split(":")):
        for option, path, writable in folders:
            refuse_unusable(option, path, user=checked, writable=writable, env=env, mapped=mapped)
    return Wishes(**{**given, **sources, "models": models, "user": user, "words": words})
