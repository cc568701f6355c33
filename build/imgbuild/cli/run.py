from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from imgbuild.cli.running import engine_option, running_options, target_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.deploy.containers import Containers
    from imgbuild.deploy.deployment import Deployment
    from imgbuild.engines import Engine
    from imgbuild.plan import Plan


@click.command("run")
@target_option
@running_options
@engine_option
@click.option(
    "-d", "--detach", is_flag=True, help="In the background, restarted on failure; waits until it serves."
)
@click.option(
    "--wait", "seconds", type=float, default=300.0, show_default=True, help="With --detach, at most."
)
@click.option("--print", "only_print", is_flag=True, help="Print the command, start nothing.")
@click.argument("args", nargs=-1, metavar="[-- ARGS]...")
@click.pass_obj
def command(
    app: App,
    /,
    target: str,
    engine_name: str,
    detach: bool,
    seconds: float,
    only_print: bool,
    args: tuple[str, ...],
    **options: Any,
) -> None:
    """Run an image the secure standard way.

    The command is printed before it runs. ARGS are flags of ComfyUI, or a verb of the image: check, nodes list.
    """
    import os

    from imgbuild import proc
    from imgbuild.cli.running import make_engine, plan_for, read_wishes, settle_target
    from imgbuild.deploy.argv import as_text, must_be, run_argv
    from imgbuild.deploy.containers import Containers
    from imgbuild.deploy.deployment import deploy, of_image, secrets_of
    from imgbuild.errors import ConfigError

    plan = plan_for(app, settle_target(app, target))
    here = not app.env.get("DOCKER_HOST", "").startswith(("tcp://", "ssh://", "http"))
    d = deploy(plan, read_wishes(app, engine=engine_name, words=args, here=here, **options))
    if detach and not d.serves:
        raise ConfigError(f"--detach is for a server, and {d.words[0]} is none")
    rootless = engine_name == "podman" and os.geteuid() != 0
    if only_print:
        argv = run_argv(
            d, must_be(engine_name), mode="detached" if detach else "foreground", rootless=rootless
        )
        click.echo(as_text(argv, d))
        return
    engine = make_engine(app, engine_name)
    containers = Containers(engine, app.env)
    _refuse_impossible(containers, d, plan, here=here)
    d = of_image(d, containers.full_name(d.image)) if engine_name == "podman" else d
    secrets = secrets_of(options["environment"])
    if detach:
        _detached(app, containers, d, rootless=rootless, seconds=seconds, secrets=secrets)
        return
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    argv = _argv(engine, d, rootless=rootless, terminal=terminal)
    _show(argv, d)
    proc.become(argv, env={**app.env, **secrets})


def _argv(engine: Engine, d: Deployment, **more: Any) -> tuple[str, ...]:
    from imgbuild.deploy.argv import must_be, run_argv

    return run_argv(d, must_be(engine.name), command=engine.command, limits=engine.limits, **more)


def _show(argv: tuple[str, ...], d: Deployment) -> None:
    from imgbuild.deploy.argv import as_text

    click.echo(as_text(argv, d), err=True)


def _refuse_impossible(containers: Containers, d: Deployment, plan: Plan, *, here: bool) -> None:
    """What would fail, or go on silently with something else, is said before anything is started."""
    from imgbuild.deploy.ports import refuse_taken
    from imgbuild.deploy.rollout import how_to_get
    from imgbuild.errors import ConfigError, SelectionError
    from imgbuild.report import warn

    image = containers.image(d.image)
    engine = containers.engine.name
    if image is None:
        raise SelectionError(f"{engine} has no image {d.image}", hint=how_to_get(d.image, plan.name))
    made_for = image.labels.get("imgbuild.target")
    if made_for is None:
        raise SelectionError(f"{d.image} has no label imgbuild.target: it is not one of ours")
    if made_for != plan.name:
        raise SelectionError(f"{d.image} was made for {made_for}", hint=f"--target {made_for}")
    there = containers.container(d.name)
    if there is not None:
        what = "runs already" if there.runs else f"is there already ({there.status})"
        raise ConfigError(
            f"the container {d.name} {what}",
            hint=f"imgbuild update {d.name} puts another image into it; {engine} rm --force {d.name} removes it; "
            "--name is another one",
        )
    if here and d.serves:
        refuse_taken(d.address, d.port, containers.publishing)
    if d.address not in ("127.0.0.1", "::1", "localhost"):
        warn(
            f"whoever reaches {d.url} runs code here: ComfyUI has no password (docs/deploying.md: the proxy)"
        )


def _detached(
    app: App,
    containers: Containers,
    d: Deployment,
    *,
    rootless: bool,
    seconds: float,
    secrets: dict[str, str],
) -> None:
    from datetime import UTC, datetime

    from imgbuild.deploy.deployment import VALUE_LABEL
    from imgbuild.deploy.health import wait_ready
    from imgbuild.deploy.ledger import Ledger, cache_folder
    from imgbuild.deploy.rollout import Rollout
    from imgbuild.errors import DeploymentError
    from imgbuild.locking import write_atomically
    from imgbuild.report import say

    engine = containers.engine
    ledger = Ledger(cache_folder(app.cache))
    labels = ledger.label_file(engine.name, d.name)
    write_atomically(labels, f"{VALUE_LABEL}={d.as_label()}\n")
    argv = _argv(engine, d, mode="detached", rootless=rootless, label_file=labels)
    _show(argv, d)
    started = containers.call(*argv[len(engine.command) :], env=secrets)
    click.echo(started.stdout.strip())
    outcome = wait_ready(containers, d.name, timeout=seconds)
    if not outcome.ready:
        raise DeploymentError(
            f"{d.name} does not serve: {outcome.why}\n{outcome.log}".rstrip(),
            hint=f"{engine.name} logs {d.name}; {engine.name} rm --force {d.name} removes it",
        )
    image = containers.image(d.image)
    if image is not None:
        rollout = Rollout(containers, ledger, lambda: datetime.now(UTC).isoformat(timespec="seconds"), say)
        rollout.remember(d.name, rollout.pin(image, d.image))
    say(
        f"{d.url} serves after {outcome.seconds:.1f} s; imgbuild update {d.name}, {engine.name} stop {d.name}"
    )
