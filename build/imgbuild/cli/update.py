from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.running import engine_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.deploy.rollout import Report, Rollout


@click.command("update")
@click.argument("name", required=False)
@click.option("-t", "--target", help="The deployment comfyui-TARGET.")
@click.option(
    "--image", metavar="REF", help="What it is updated to. [default: its target's tag, as it is now]"
)
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds until it has to take prompts."
)
@engine_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(
    app: App,
    name: str | None,
    target: str | None,
    image: str | None,
    timeout: float,
    engine_name: str,
    as_json: bool,
) -> None:
    """Put another image into a running deployment; the one before comes back if it fails.

    NAME is what `imgbuild run --detach` or compose/ made; it may be left out where there is only one. Its volumes stay.
    """
    rollout = make_rollout(app, engine_name, timeout)
    chosen = settle_name(rollout, name, target)
    tell(rollout.update(chosen, image or _tag_of(app, rollout, chosen)), as_json=as_json)


def make_rollout(app: App, engine_name: str, timeout: float) -> Rollout:
    from datetime import UTC, datetime

    from imgbuild.cli.running import make_engine
    from imgbuild.deploy.containers import Containers
    from imgbuild.deploy.ledger import Ledger, cache_folder
    from imgbuild.deploy.rollout import Rollout
    from imgbuild.report import say

    return Rollout(
        containers=Containers(make_engine(app, engine_name), app.env),
        ledger=Ledger(cache_folder(app.cache)),
        now=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        say=say,
        timeout=timeout,
    )


def settle_name(rollout: Rollout, name: str | None, target: str | None) -> str:
    from imgbuild.deploy.deployment import LABEL
    from imgbuild.errors import SelectionError

    if name or target:
        return name or f"comfyui-{target}"
    names = sorted({c.labels[LABEL] for c in rollout.containers.labelled(LABEL)})
    if len(names) == 1:
        return names[0]
    if not names:
        raise SelectionError("nothing is deployed here", hint="imgbuild run --detach")
    raise SelectionError(f"several are deployed here: {', '.join(names)}", hint=f"imgbuild update {names[0]}")


def _tag_of(app: App, rollout: Rollout, name: str) -> str:
    """The tag of the target that the deployment was made for."""
    from imgbuild.cli.running import plan_for
    from imgbuild.deploy.deployment import TARGET_LABEL

    target = rollout.find(name).labels.get(TARGET_LABEL, "")
    return plan_for(app, app.matrix().select([target])[0]).tags[-1]


def tell(report: Report, *, as_json: bool) -> None:
    import json

    from imgbuild.deploy.rollout import raise_for
    from imgbuild.report import say

    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    elif report.changed:
        click.echo(f"{report.name}: {report.was[:19]} → {report.wanted[:19]}")
    if report.downtime is not None and (report.changed or report.rolled_back):
        say(f"{report.downtime:.1f} s without an answer")
    raise_for(report)
    if not report.changed:
        say(f"{report.name} runs {report.was[:19]} already: nothing to do")
