from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from imgbuild.cli.running import running_options, target_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.deploy.deployment import Deployment
    from imgbuild.deploy.services import Services

_WRITING = ("print", "install", "enable", "disable")
_STEERING = ("start", "stop", "restart", "status", "remove")


@click.command("service")
@click.argument("verb", type=click.Choice([*_WRITING, *_STEERING]))
@target_option
@running_options
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(["podman", "docker"]),
    default="podman",
    show_default=True,
    help="podman: a quadlet (Podman 4.9 or newer); docker: a unit that runs docker run.",
)
@click.option(
    "--user-service/--system-service", "mine", default=None, help="[default: yours, unless you are root]"
)
@click.pass_obj
def command(app: App, /, verb: str, target: str, engine_name: str, mine: bool | None, **options: Any) -> None:
    r"""A systemd service: written, started, stopped, removed.

    \b
    print    show the units, write nothing
    install  write them, and tell systemd
    enable   the same, start it, and at every boot; disable: not at boot
    start, stop, restart, status
    remove   stop it, delete its units; volumes and folders stay
    """
    from imgbuild.deploy.argv import must_be
    from imgbuild.deploy.services import Services
    from imgbuild.errors import ConfigError

    engine = must_be(engine_name)
    user = (os.geteuid() != 0 if mine is None else mine) and engine == "podman"
    if mine and engine == "docker":
        raise ConfigError("--user-service: Docker's containers are the system's", hint="--engine podman")
    services = Services(engine=engine, user=user, env=app.env)
    if verb in _WRITING:
        _write(app, services, verb, target, options)
        return
    name = options["name"] or f"comfyui-{_target_name(app, target)}"
    unit = f"{name}.service"
    if verb == "remove":
        _remove(services, name, unit)
        return
    services.installed(name)
    done = services.systemctl(verb, unit, check=verb != "status")
    click.echo(done.stdout, nl=False)


def _target_name(app: App, target: str) -> str:
    from imgbuild.cli.running import settle_target

    return settle_target(app, target).name


def _write(app: App, services: Services, verb: str, target: str, options: dict[str, Any]) -> None:
    from imgbuild.cli.running import plan_for, read_wishes, settle_target
    from imgbuild.deploy.deployment import deploy
    from imgbuild.deploy.units import unit_files
    from imgbuild.errors import ConfigError
    from imgbuild.report import say, warn

    plan = plan_for(app, settle_target(app, target))
    d = deploy(plan, read_wishes(app, engine=services.engine, **options))
    if hidden := [name for name, value in d.environment.items() if value is None]:
        raise ConfigError(
            f"--env {hidden[0]}: a unit file would show it, and systemd has no value of yours",
            hint="a line of comfyrun.env in the data folder (docs/running.md)",
        )
    if verb != "print":
        d = _by_digest(app, services, d)
    files = unit_files(d, services.engine, at_boot=verb == "enable", user=services.user)
    if verb == "print":
        for name, text in files.items():
            click.echo(f"# {services.folder / name}\n{text}")
        return
    for name in services.install(files):
        say(f"wrote {services.folder / name}")
    services.systemctl("daemon-reload")
    unit = f"{d.name}.service"
    if services.engine == "docker":
        services.systemctl("disable" if verb == "disable" else "enable", unit) if verb != "install" else None
    if verb == "enable":
        services.systemctl("start", unit)
        if services.user and not services.lingers():
            warn("without a session of yours it does not run; at boot: loginctl enable-linger")
    say(f"{unit} is {'started, and starts at every boot' if verb == 'enable' else 'written'}; {d.url}")


def _by_digest(app: App, services: Services, d: Deployment) -> Deployment:
    """With the tag of exactly what the engine has now, so that a build does not change what the service starts."""
    from datetime import UTC, datetime

    from imgbuild import proc
    from imgbuild.deploy.containers import Containers
    from imgbuild.deploy.deployment import of_image
    from imgbuild.deploy.ledger import Ledger, cache_folder
    from imgbuild.deploy.rollout import Rollout, how_to_get
    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.report import say, warn

    if proc.which(services.engine, env=app.env) is None:
        warn(f"{services.engine} is not installed")
        return d
    containers = Containers(Podman(app.env) if services.engine == "podman" else Docker(app.env), app.env)
    image = containers.image(d.image)
    if image is None:
        warn(f"{services.engine} has no image {d.image}: {how_to_get(d.image, d.target)}")
        return d
    rollout = Rollout(
        containers,
        Ledger(cache_folder(app.cache)),
        lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        say,
    )
    return of_image(d, rollout.pin(image, d.image).image)


def _remove(services: Services, name: str, unit: str) -> None:
    from imgbuild.report import say

    volumes = services.volumes(name)
    services.systemctl("stop", unit, check=False)
    if services.engine == "docker":
        services.systemctl("disable", unit, check=False)
    for path in services.remove(name):
        say(f"removed {path}")
    services.systemctl("daemon-reload")
    gone = f"; {services.engine} volume rm {' '.join(volumes)} deletes what is in volumes" if volumes else ""
    say(f"its data stays{gone}")
