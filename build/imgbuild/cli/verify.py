from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgbuild.cli.app import App, complete_target

if TYPE_CHECKING:
    from imgbuild.matrix import Matrix, Target
    from imgbuild.verify import Report

ANSWERS = {"yes": "yes", "jit": "by JIT", "no": "no", "unasked": "–", "unreadable": "unreadable", "none": "–"}


@click.command("verify")
@click.argument("subjects", nargs=-1, required=True, metavar="IMAGE|WHEEL...")
@click.option(
    "-t", "--target", "name", metavar="NAME", shell_complete=complete_target, help="What it was made for."
)
@click.option("--compute-capability", "capability", metavar="X.Y", help="The same, without a matrix.")
@click.option("--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--all", "everything", is_flag=True, help="List files without GPU code too.")
@click.pass_obj
def command(
    app: App,
    subjects: tuple[str, ...],
    name: str | None,
    capability: str | None,
    engine: str,
    as_json: bool,
    everything: bool,
) -> None:
    """Prove that an image or a wheel holds code that its GPU runs.

    Every shared object is opened. An image is held against its labels; a wheel against --target or
    --compute-capability, and without either it is only listed.
    """
    import json

    from imgbuild.report import warn
    from imgbuild.verify import raise_for

    target = app.matrix().select([name])[0] if name else None
    reports = []
    for subject in subjects:
        if _is_file(subject):
            reports.append(_wheel(app.matrix() if target else None, Path(subject), target, capability))
        else:
            reports.append(_image(app, subject, target, capability, engine))
    if as_json:
        click.echo(json.dumps([r.as_json() for r in reports], indent=2))
    for report in reports:
        if not as_json:
            _show(report, everything=everything)
        for text in report.warnings:
            warn(f"{report.subject}: {text}")
    raise_for(reports)


def _is_file(subject: str) -> bool:
    from imgbuild.errors import ConfigError

    if Path(subject).is_file():
        return True
    if subject.endswith(".whl"):
        raise ConfigError(f"there is no file {subject}")
    return False


def _wheel(matrix: Matrix | None, path: Path, target: Target | None, capability: str | None) -> Report:
    from imgbuild.verify import expected_of, recipe_code, verify_wheel

    code = recipe_code(path, matrix, target) if matrix and target else ()
    return verify_wheel(path, expected_of(target, _capability(capability)), code=code)


def _image(app: App, tag: str, target: Target | None, capability: str | None, engine: str) -> Report:
    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.report import say
    from imgbuild.verify import verify_image

    return verify_image(
        Podman(app.env) if engine == "podman" else Docker(app.env),
        tag,
        matrix=app.matrix(),
        target=target,
        capability=_capability(capability),
        say=say,
    )


def _capability(text: str | None) -> str | None:
    from imgbuild.errors import ConfigError
    from imgbuild.fatbin import FatbinError, split_capability

    if text is not None:
        try:
            split_capability(text)
        except FatbinError as e:
            raise ConfigError(f"--{e}") from None
    return text


def _show(report: Report, *, everything: bool) -> None:
    from imgbuild.report import table

    made_for = f" for {report.target}" if report.target else ""
    rows = [r for r in report.rows if everything or r.runs != "none"]
    if rows:
        table(
            f"{report.subject}{made_for}",
            [
                "file",
                "package",
                "code for",
                f"runs on {report.capability}?" if report.capability else "runs?",
            ],
            [[r.file, r.package or "–", r.holds, ANSWERS[r.runs]] for r in rows],
        )
    without = sum(r.runs == "none" for r in report.rows)
    if without and not everything:
        click.echo(f"{report.subject}{made_for}: {without} shared objects without GPU code")
    if not report.rows:
        click.echo(f"{report.subject}{made_for}: no shared object")
