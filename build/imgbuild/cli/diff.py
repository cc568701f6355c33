from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgbuild.cli.finding import deep_option, engine_option, finder, json_option, platform_option

if TYPE_CHECKING:
    from imgbuild.cli.app import App
    from imgbuild.imagediff import Difference


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@platform_option
@engine_option
@deep_option
@json_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with the layers side by side.",
)
@click.pass_obj
def command(
    app: App,
    a: str,
    b: str,
    platform: str | None,
    engine: str,
    deep: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Show what differs between two images: layers, packages, kernels, environment, labels, sizes.

    A and B are an engine's tag, REGISTRY/PATH:TAG, or a file of imgbuild save. Packages are read from an SBOM or from
    the image's own lists where there are any, which takes seconds; --deep opens every layer.
    """
    import json

    from imgbuild import __version__
    from imgbuild.diffreport import page
    from imgbuild.errors import ConfigError
    from imgbuild.imagediff import difference
    from imgbuild.locate import sized
    from imgbuild.report import say

    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"--html {html}: there is no folder {html.absolute().parent}")
    find = finder(app, engine)
    one, other = find.find(a, platform), find.find(b, platform)
    views = [one.view, other.view]
    found = difference(
        sized(one.view, views),
        sized(other.view, views),
        find.contents(one, deep=deep),
        find.contents(other, deep=deep),
    )
    if html is not None:
        html.write_text(page(found, templates=app.project().templates, version=__version__), encoding="utf-8")
        say(f"{html} shows it")
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)


def _show(found: Difference) -> None:
    from imgbuild.cli.finding import amount
    from imgbuild.diffreport import sections
    from imgbuild.report import table, warn

    if found.empty:
        click.echo(f"{found.a.reference} and {found.b.reference} are the same in all that was compared")
    sizes = [("compressed or as stored", found.stored), ("unpacked", found.unpacked)]
    table(
        f"A: {found.a.reference}   B: {found.b.reference}",
        ["", "A", "B", "in both"],
        [
            ["digest", found.a.digest[:19], found.b.digest[:19], ""],
            ["layers", str(len(found.a.layers)), str(len(found.b.layers)), str(_same(found))],
            *(
                [title, amount(size.a), amount(size.b), amount(size.shared)]
                for title, size in sizes
                if size.a is not None or size.b is not None
            ),
        ],
        right=(1, 2, 3),
    )
    table(
        "Layers, from the bottom to the top",
        ["", "layer", "A", "B"],
        [
            [
                "=" if p.same else "+" if p.a is None else "-" if p.b is None else "~",
                p.name,
                amount(p.a.size if p.a else None),
                amount(p.b.size if p.b else None),
            ]
            for p in found.layers
        ],
        right=(2, 3),
    )
    for title, rows in sections(found):
        if rows:
            table(title, ["", "name", "A", "B"], [[c.sign, c.name, c.a or "–", c.b or "–"] for c in rows])
    if found.python is None:
        for side, source in zip(("A", "B"), found.sources, strict=True):
            warn(f"packages of {side}: {source}")
        warn("packages were not compared")
    elif not found.python and not found.debian and not found.work:
        click.echo("Python and Debian packages: the same")


def _same(found: Difference) -> int:
    return sum(pair.same for pair in found.layers)
