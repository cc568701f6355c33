from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.running import engine_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App


@click.command("rollback")
@click.argument("name", required=False)
@click.option("-t", "--target", help="The deployment comfyui-TARGET.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds until it has to take prompts."
)
@engine_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(
    app: App, name: str | None, target: str | None, timeout: float, engine_name: str, as_json: bool
) -> None:
    """Put the image before back into a running deployment."""
    from imgbuild.cli.update import make_rollout, settle_name, tell

    rollout = make_rollout(app, engine_name, timeout)
    tell(rollout.rollback(settle_name(rollout, name, target)), as_json=as_json)
