"""What the verbs that look at images have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgbuild.cli.app import App
    from imgbuild.engines import Engine
    from imgbuild.locate import Finder

F = TypeVar("F", bound="Callable[..., Any]")

engine_option = click.option(
    "--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
platform_option = click.option(
    "--platform", metavar="OS/ARCH", help="Which image of an index; this machine's, if not given."
)
deep_option = click.option(
    "--deep",
    is_flag=True,
    help="Open every layer for its packages, whatever lists there are; a registry's layers are downloaded.",
)


def the_engine(app: App, name: str) -> Engine:
    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman

    return Podman(app.env) if name == "podman" else Docker(app.env)


def finder(app: App, engine: str) -> Finder:
    from imgbuild.locate import Finder
    from imgbuild.report import Meter, say

    return Finder(
        env=app.env,
        engine=lambda: the_engine(app, engine),
        groups=tuple(layer.name for layer in app.matrix().common.layers),
        say=say,
        meter=Meter,
    )


def amount(size: int | None) -> str:
    from imgbuild.report import human

    return "–" if size is None else human(size)
