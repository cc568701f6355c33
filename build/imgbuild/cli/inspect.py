from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.finding import deep_option, engine_option, finder, json_option, platform_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.contents import Contents
    from imgbuild.imageview import View


@click.command("inspect")
@click.argument("reference", metavar="IMAGE")
@platform_option
@engine_option
@click.option("--packages", is_flag=True, help="List the Python and Debian packages in it too.")
@deep_option
@json_option
@click.pass_obj
def command(
    app: App,
    reference: str,
    platform: str | None,
    engine: str,
    packages: bool,
    deep: bool,
    as_json: bool,
) -> None:
    """Show what an image is made for, what it holds and how it starts.

    IMAGE is an engine's tag, REGISTRY/PATH:TAG (of which no layer is fetched), or a file of imgbuild save.
    """
    import json

    from imgbuild.doctor.probe import this_machine
    from imgbuild.hardware import look
    from imgbuild.imageinfo import runs_here
    from imgbuild.remoteimage import machine_platform

    find = finder(app, engine)
    located = find.find(reference, platform)
    contents = find.contents(located, deep=deep) if packages or deep else None
    verdict = runs_here(located.view, look(this_machine(app.env).run), machine_platform())
    if as_json:
        known = contents.as_json() if contents is not None and not isinstance(contents, str) else None
        document = {
            **located.view.as_json(),
            "runs_here": {"runs": verdict.runs, "why": verdict.why},
            "packages": known,
        }
        click.echo(json.dumps(document, indent=2))
        return
    _show(located.view, verdict.runs, verdict.why)
    if contents is not None:
        _show_packages(contents)


def _show(view: View, runs: bool, why: str) -> None:
    from imgbuild.imageinfo import code_rows, facts, layer_columns, secret_free
    from imgbuild.report import table

    table(view.reference, ["", ""], [*facts(view), ("runs here", f"{'yes' if runs else 'no'}: {why}")])
    if rows := code_rows(view):
        table("Kernels", ["kernel", "version", "code for", "wheelhouse key"], rows)
    stored = "compressed" if view.place == "registry" else "as stored"
    columns, rows = layer_columns(view, stored)
    table("Layers, from the bottom to the top", columns, rows, right=range(1, len(columns) - 2))
    table("Environment", ["variable", "value"], [list(r) for r in secret_free(view.environment)])
    table("Labels", ["label", "value"], [[n, v] for n, v in sorted(view.labels.items())])


def _show_packages(contents: Contents | str) -> None:
    from imgbuild.report import table, warn

    if isinstance(contents, str):
        warn(contents)
        return
    kinds = [("Python", contents.python), ("Debian", contents.debian)]
    kinds += [("worker's Python", contents.work)] if contents.work else []
    for kind, names in kinds:
        table(
            f"{len(names)} {kind} packages, from {contents.source}",
            ["package", "version"],
            [[n, v] for n, v in sorted(names.items())],
        )
