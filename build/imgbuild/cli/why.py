from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import App, complete_target, parse_sources, source_option

if TYPE_CHECKING:
    from imgbuild.why import Part, Why

_SHOWN = 4  # differences of one part in the table; --json has all


@click.command("why")
@click.argument("target", shell_complete=complete_target)
@source_option
@click.option("--json", "as_json", is_flag=True, help="For programs: every component, old and new.")
@click.pass_obj
def command(app: App, target: str, sources: tuple[str, ...], as_json: bool) -> None:
    """Say what differs from the last build of a target, and what that costs."""
    import json

    from imgbuild.build import Builder, Options
    from imgbuild.engines.docker import Docker
    from imgbuild.report import say
    from imgbuild.why import look

    (selected,) = app.matrix().select([target])
    builder = Builder(
        project=app.project(),
        matrix=app.matrix(),
        settings=app.settings(),
        env=app.env,
        cache=app.cache,
        engine=Docker(app.env),  # never asked
        say=say,
        notice=lambda title, _: say(title),
    )
    found = look(builder, selected, Options(sources=parse_sources(sources, app.matrix().common.kernels)))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    _show(found)


def _show(why: Why) -> None:
    from imgbuild.report import human, table

    last = why.last
    title = f"since the build of {last.when}: {last.tag} ({last.engine})" if last else "a cold build"
    table(
        f"{why.target}, {title}",
        ["part", "state", "what differs", "compiling", "the rest", "push"],
        [
            [
                part.name,
                part.state,
                _differences(part),
                _compiling(part),
                f"{part.stage_seconds:.0f} s {'' if part.measured else '(est.)'}".rstrip()
                if part.stage_seconds
                else "–",
                human(part.bytes) if part.bytes else "–",
            ]
            for part in why.parts
        ],
        right=(3, 4, 5),
    )
    click.echo(why.sentence())


def _differences(part: Part) -> str:
    lines = [d.text() for d in part.shown()]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more, *filter(None, [part.note])])


def _compiling(part: Part) -> str:
    if part.compile_seconds is None:
        return "not known"
    return f"{part.compile_seconds:.0f} s" if part.compiles else "–"
