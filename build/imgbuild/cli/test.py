from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from imgbuild.cli.app import App, complete_target

if TYPE_CHECKING:
    from imgbuild.imagetests import Options, Tested
    from imgbuild.subject import Subject


@click.command("test")
@click.option(
    "-t", "--target", "targets", multiple=True, shell_complete=complete_target, help="May be repeated."
)
@click.option("--all", "everything", is_flag=True, help="Every target whose image this machine has.")
@click.option(
    "--image", "images", multiple=True, metavar="REF", help="Any image of ours, or a variant of one."
)
@click.option("--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True)
@click.option(
    "--gpu",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="on: without a GPU the tests of ring 3 fail.",
)
@click.option("-k", "select", metavar="EXPRESSION", help="Only tests whose names fit, as pytest takes it.")
@click.option(
    "--ring",
    "rings",
    multiple=True,
    type=click.Choice(["1", "2", "3", "faults"]),
    help="Only these; may be repeated.",
)
@click.option("-x", "stop", is_flag=True, help="Stop at the first failure.")
@click.option(
    "--report", "report_text", metavar="junit,html,json", default="", help="What to write beside the log."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="test-results",
    show_default=True,
    help="The folder for reports and logs.",
)
@click.option("--quiet", is_flag=True, help="Show the tables only, not the tests as they run.")
@click.pass_obj
def command(
    app: App,
    targets: tuple[str, ...],
    everything: bool,
    images: tuple[str, ...],
    engine: str,
    gpu: str,
    select: str | None,
    rings: tuple[str, ...],
    stop: bool,
    report_text: str,
    output: Path,
    quiet: bool,
) -> None:
    """Prove that images work.

    Ring 1 looks at an image by itself, ring 2 generates pictures on the CPU, ring 3 needs a GPU, and faults are what goes
    wrong around a server. What could not be proven here is counted and named.
    """
    from imgbuild import imagetests

    options = imagetests.Options(
        engine=engine,
        gpu=cast("Any", gpu),  # click.Choice holds the same words
        select=select,
        rings=tuple(r if r == "faults" else f"ring{r}" for r in rings),
        stop=stop,
        show=not quiet,
        reports=_reports(report_text),
        output=output,
    )
    imagetests.check_pytest()
    tested = []
    for subject in _subjects(app, targets, images, everything=everything, engine=engine):
        done = imagetests.test_image(app.project(), subject, options, env=app.env)
        _write(app, done, options)
        tested.append(done)
    _show(tested)
    imagetests.raise_for(tested, gpu=options.gpu)


def _reports(text: str) -> tuple[str, ...]:
    from imgbuild.errors import ConfigError
    from imgbuild.imagetests import REPORTS

    wanted = tuple(word.strip() for word in text.split(",") if word.strip())
    if strange := [w for w in wanted if w not in REPORTS]:
        raise ConfigError(f"--report: no report {strange[0]!r}; there are: {', '.join(REPORTS)}")
    return wanted


def _subjects(
    app: App, targets: tuple[str, ...], images: tuple[str, ...], *, everything: bool, engine: str
) -> list[Subject]:
    """The images that were asked for, each by its digest."""
    import platform

    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.errors import ConfigError, SelectionError
    from imgbuild.report import say, warn
    from imgbuild.subject import find_subject

    if bool(images) + bool(targets) + everything > 1:
        raise ConfigError("--target, --all and --image exclude one another")
    own = Podman(app.env) if engine == "podman" else Docker(app.env)
    known: dict[str, Any] = {"cache": app.cache, "machine": platform.machine()}
    matrix = app.matrix()
    if images:
        return [find_subject(own, app.project(), matrix, reference=ref, **known) for ref in images]
    found = []
    for target in matrix.select(targets, everything=everything):
        reference = f"{matrix.common.image}:{target.name}"
        if everything and own.find(reference) is None:
            say(f"{target.name}: no image {reference} here, not tested")
            continue
        found.append(find_subject(own, app.project(), matrix, reference=reference, target=target, **known))
    if not found:
        raise SelectionError("this machine has an image of no target", hint="imgbuild build --target cpu")
    for subject in found:
        if subject.stale:
            warn(f"{subject.reference}: {subject.stale}")
    return found


def _write(app: App, tested: Tested, options: Options) -> None:
    from imgbuild import __version__
    from imgbuild.locking import write_atomically
    from imgbuild.render import pretty
    from imgbuild.report import say
    from imgbuild.testreport import page

    if not tested.results:
        return
    texts = {}
    if "json" in options.reports:
        texts["json"] = pretty(tested.results)
    if "html" in options.reports:
        texts["html"] = page(tested.results, templates=app.project().templates, version=__version__)
    for kind, text in texts.items():
        path = options.output / f"{tested.log.stem if tested.log else 'image'}.{kind}"
        write_atomically(path, text)
        say(f"wrote {path}")


def _show(tested: list[Tested]) -> None:
    from imgbuild.imagetests import skips
    from imgbuild.report import table

    table(
        "",
        ["target", "ring", "passed", "failed", "skipped", "seconds"],
        [
            [t.name, ring, str(c.passed), str(c.failed), str(c.skipped), f"{c.seconds:.1f}"]
            for t in tested
            for ring, c in t.counts.items()
        ],
        right=(2, 3, 4, 5),
    )
    missing = [[t.name, str(n), why] for t in tested for why, n in skips(t.tests).items()]
    if missing:
        table("not proven here", ["target", "tests", "why"], missing, right=(1,))
