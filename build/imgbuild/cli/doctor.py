from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import App, complete_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgbuild.doctor import Finding, Probe
    from imgbuild.doctor.mend.steps import Step
    from imgbuild.errors import ImgbuildError

ALL_PLATFORMS = frozenset({"linux/amd64", "linux/arm64"})
MARKS = {"ok": ("✓", "green"), "info": ("·", "cyan"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command("doctor")
@click.option(
    "--fix", "mend", is_flag=True, help="Install and start what is missing (Debian and Ubuntu, as root)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--offline", is_flag=True, help="Ask nothing that needs a network.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_target,
    help="Look only at what this target needs; may be repeated (default: every target).",
)
@click.pass_obj
def command(app: App, mend: bool, as_json: bool, offline: bool, targets: tuple[str, ...]) -> None:
    """Check this machine, and with --fix mend it.

    Exits 0 when nothing stands in a build's way, 5 otherwise.
    """
    import json

    from imgbuild import doctor
    from imgbuild.errors import EngineError

    platforms, git_url, broken = _wanted(app, targets)
    probe = doctor.this_machine(app.env)

    def examine() -> list[Finding]:
        found = doctor.examine(
            probe, platforms=platforms, cache=app.cache, needed_bytes=None, git_url=git_url, offline=offline
        )
        return [*broken, *found]

    findings = examine()
    stopped: ImgbuildError | None = None
    if any(f.fixable for f in findings):
        findings, stopped = _mend_or_offer(probe, findings, examine=examine, mend=mend)
    if as_json:
        click.echo(json.dumps([f.as_json() for f in findings], indent=2, ensure_ascii=False))
    else:
        _table(findings, app.env)
    if stopped:
        raise stopped
    if doctor.failed(findings):
        raise click.exceptions.Exit(EngineError.exit_code)


def _mend_or_offer(
    probe: Probe, findings: list[Finding], *, examine: Callable[[], list[Finding]], mend: bool
) -> tuple[list[Finding], ImgbuildError | None]:
    """The findings afterwards, and what stopped a repair that was asked for."""
    from imgbuild import doctor
    from imgbuild.doctor.finding import error
    from imgbuild.doctor.mend import host
    from imgbuild.errors import EngineError, ImgbuildError
    from imgbuild.report import say

    machine = host.survey(probe)
    try:
        if mend and machine.refusal is None:
            return doctor.fix(doctor.own_hands(probe, say), findings, examine=examine, tell=_tell), None
        _offer(doctor.ensure(findings, machine), because=machine.refusal)
    except ImgbuildError as e:
        if mend:
            return examine(), e
        return [*findings, error("engine settings", e.message, *([e.hint] if e.hint else []))], None
    refused = (
        EngineError(f"nothing was changed: {machine.refusal}", hint="the commands are above")
        if mend
        else None
    )
    return findings, refused


def _wanted(app: App, targets: tuple[str, ...]) -> tuple[frozenset[str], str | None, list[Finding]]:
    """Platforms, ComfyUI's repository, and what is wrong with the matrix itself: no reason to look at nothing."""
    from imgbuild.doctor.finding import error
    from imgbuild.errors import ConfigError

    try:
        matrix = app.matrix()
    except (ConfigError, OSError) as e:
        return ALL_PLATFORMS, None, [error("matrix", str(e), getattr(e, "hint", None) or "imgbuild targets")]
    selected = matrix.select(targets, everything=True)
    return frozenset(t.platform for t in selected), matrix.comfyui.git, []


def _tell(step: Step) -> None:
    from imgbuild.report import say

    say(step.title)
    for line in step.shell():
        click.echo(f"    {line}", err=True)


def _offer(steps: Sequence[Step], *, because: str | None) -> None:
    from imgbuild.report import say

    say(f"{because}; what it would do, as root:" if because else "imgbuild doctor --fix would do this:")
    for step in steps:
        click.echo(f"  # {step.title}", err=True)
        for line in step.shell():
            click.echo(f"  {'# ' if step.manual else ''}{line}", err=True)


def _table(findings: Sequence[Finding], env: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 1), show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for f in findings:
        mark, colour = MARKS[f.severity.value]
        what = Text(f.what)
        for remedy in f.remedy:
            what.append(f"\n→ {remedy}", style="dim")
        shown.add_row(Text(mark, style=colour), Text(f.check, style="bold"), what)
    console = Console(no_color=True if env.get("NO_COLOR") else None)
    if not console.is_terminal and not env.get("COLUMNS"):
        console.width = 120
    console.print(shown)
    bad = sum(f.severity.value == "error" for f in findings)
    odd = sum(f.severity.value == "warning" for f in findings)
    console.print(f"{len(findings)} findings: {bad} errors, {odd} warnings", highlight=False)
