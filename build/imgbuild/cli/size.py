from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.finding import engine_option, finder, json_option, platform_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.imageview import View


@click.command("size")
@click.argument("references", nargs=-1, required=True, metavar="IMAGE...")
@platform_option
@engine_option
@json_option
@click.pass_obj
def command(app: App, references: tuple[str, ...], platform: str | None, engine: str, as_json: bool) -> None:
    """Show how large the layers of images are, and which of them they share.

    IMAGE is an engine's tag, REGISTRY/PATH:TAG (of which no layer is fetched), or a file of imgbuild save. What two
    images share is stored, pushed and pulled once.
    """
    import json

    from imgbuild.imageinfo import shared_rows
    from imgbuild.locate import sized

    find = finder(app, engine)
    views = [find.find(reference, platform).view for reference in references]
    views = [sized(view, views) for view in views]
    if as_json:
        rows = [
            {
                "reference": v.reference,
                "digest": v.digest,
                "stored_bytes": v.stored,
                "unpacked_bytes": v.unpacked,
                "layers": v.as_json()["layers"],
            }
            for v in views
        ]
        click.echo(json.dumps({"images": rows, "shared": shared_rows(views)}, indent=2))
        return
    for view in views:
        _show(view, [v for v in views if v is not view])
    if len(views) > 1:
        _show_shared(views)


def _show(view: View, others: list[View]) -> None:
    from imgbuild.cli.finding import amount
    from imgbuild.imageinfo import size_text
    from imgbuild.report import table

    rows = []
    for layer in view.layers:
        also = [v.reference for v in others if layer.diff in {x.diff for x in v.layers}]
        row = [layer.name, amount(layer.stored), amount(layer.unpacked)]
        rows.append([*row, ", ".join(also)] if others else row)
    rows.append(["all", amount(view.stored), amount(view.unpacked), *([""] if others else [])])
    columns = ["layer", "compressed" if view.place == "registry" else "as stored", "unpacked"]
    table(
        f"{view.reference}: {size_text(view)}",
        [*columns, *(["shared with"] if others else [])],
        rows,
        right=(1, 2),
    )


def _show_shared(views: list[View]) -> None:
    from imgbuild.cli.finding import amount
    from imgbuild.imageinfo import shared_rows
    from imgbuild.report import table

    rows = [
        [
            f"{r['a']} and {r['b']}",
            str(r["layers"]),
            amount(r["stored_bytes"]),
            amount(r["unpacked_bytes"]),
        ]
        for r in shared_rows(views)
    ]
    table("Shared", ["images", "layers", "compressed or as stored", "unpacked"], rows, right=(1, 2, 3))
