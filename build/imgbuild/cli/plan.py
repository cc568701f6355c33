from __future__ import annotations

import click

from imgbuild.cli.app import App, targets_argument


@click.command("plan")
@targets_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: every pin, hash and size.")
@click.pass_obj
def command(app: App, targets: tuple[str, ...], as_json: bool) -> None:
    """Show targets fully resolved."""
    import json

    from imgbuild.plan import make_plans
    from imgbuild.report import human, table

    matrix = app.matrix()
    plans = make_plans(app.project(), matrix, matrix.select(targets, everything=True))
    if as_json:
        click.echo(json.dumps([p.as_json() for p in plans], indent=2))
        return
    for plan in plans:
        table(
            f"{plan.name}: {plan.title}",
            ["", ""],
            [
                ["tags", "\n".join(plan.tags)],
                ["platform", plan.platform],
                ["compute capability", plan.compute_capability or "none"],
                ["ComfyUI", f"{plan.source.version} ({plan.source.git} {plan.source.commit})"],
                ["torch", f"{plan.torch}, CUDA {plan.cuda or 'none'}, Python {plan.base.python}"],
                ["base", f"{plan.base.image}@{plan.base.digest[:19]}…"],
                *[[f"layer {x.name}", f"{len(x.wheels)} wheels, {human(x.size)}"] for x in plan.layers],
                ["wheels in all", human(plan.wheels_size)],
                ["plan", plan.key],
            ],
        )
        for name, rows in plan.reasons.items():
            table(
                f"profile {name}",
                ["line", "why", "evidence"],
                [[r["line"], r["why"], r["evidence"]] for r in rows],
            )
