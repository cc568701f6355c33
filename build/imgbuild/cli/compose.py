from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgbuild.cli.app import App, complete_target
from imgbuild.cli.running import running_options

if TYPE_CHECKING:
    from imgbuild.render import Files, Renderer


@click.command("compose")
@click.argument("target", default="auto", shell_complete=complete_target)
@running_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("compose"),
    show_default=True,
    help="The folder to write to.",
)
@click.option("--print", "only_print", is_flag=True, help="Print the target's file, write nothing.")
@click.pass_obj
def command(app: App, /, target: str, output: Path, only_print: bool, **options: Any) -> None:
    """Write compose files for a target.

    The same as in compose/ of a checkout, with what the options say; TARGET is this machine's GPU's when not given.
    `imgbuild compose workers` writes those of a queue and its workers.
    """
    import shlex

    from imgbuild import render
    from imgbuild.cli.running import plan_for, read_wishes, settle_target
    from imgbuild.deploy import queue
    from imgbuild.deploy.compose import FOLDER, HEADER, compose_files
    from imgbuild.deploy.deployment import deploy
    from imgbuild.errors import ConfigError
    from imgbuild.report import say

    if target == queue.NAME and _given(options):
        raise ConfigError(
            f"imgbuild compose {queue.NAME} takes none of these options: {' '.join(_given(options))}",
            hint=f"every setting is in {queue.NAME}.env",
        )
    project = app.project()
    if project.writable and output.resolve() == project.root / FOLDER and not only_print:
        raise ConfigError(
            f"{output}/ of a checkout is what imgbuild render writes",
            hint="docker compose -f compose/… takes it as it is; -o DIR writes files with options",
        )
    renderer = render.Renderer(app.project().templates)
    if target == queue.NAME:
        name, files = target, _of_the_queue(app, renderer)
    else:
        plan = plan_for(app, settle_target(app, target))
        d = deploy(plan, read_wishes(app, engine="docker", **options))
        name, again = plan.name, shlex.join(["imgbuild", "compose", plan.name, *_given(options)])
        files = compose_files(renderer, d, title=f"ComfyUI for {plan.title}", again=again)
    if only_print:
        click.echo(files[f"{name}.yaml"], nl=False)
        return
    for file in files:
        path = output / file
        if path.is_file() and not path.read_bytes().startswith(HEADER.encode()):
            raise ConfigError(f"{path} was not written by imgbuild", hint="-o takes another folder")
    changed = render.write(files, output)
    for file in changed:
        say(f"wrote {output / file}")
    if not changed:
        say("nothing has changed")
    profile = " --profile queue" if name == queue.NAME else ""
    say(f"docker compose -f {os.path.join(output, f'{name}.yaml')}{profile} up --detach --wait")  # noqa: PTH118


def _of_the_queue(app: App, renderer: Renderer) -> Files:
    from imgbuild.cli.running import plan_for
    from imgbuild.deploy import queue

    (target,) = app.matrix().select([queue.GPU_TARGET])
    return queue.worker_files(renderer, plan_for(app, target), again=f"imgbuild compose {queue.NAME}")


def _given(options: dict[str, Any]) -> list[str]:
    """The options that were given, to be repeated; never the value of a secret."""
    from imgbuild.deploy.deployment import is_secret

    words: list[str] = []
    standard = {"address": "127.0.0.1", "port": 8188}
    for name, value in sorted(options.items()):
        if value in (None, ()) or standard.get(name) == value:
            continue
        option = "--env" if name == "environment" else f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else (value,):
            variable = str(one).partition("=")[0]
            words += [option, variable if name == "environment" and is_secret(variable) else str(one)]
    return words
