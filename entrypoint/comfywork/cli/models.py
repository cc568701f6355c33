"""comfyrun models list|pull|verify|budget|lock."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comfywork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfywork.models.modellist import Loaded, Model, ModelFile

_EXITS = (
    "Exit codes: 0; 1 a file is wrong, missing or refused; 2 a list or an option is wrong; 69 a server or the disk; "
    "75 another pull works here; 77 no access; 130 interrupted."
)

_lists = click.argument("lists", nargs=-1, metavar="[LIST]...")
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_folder = click.option("--models", "folder", metavar="DIR", help="In place of MODELS_PATH.")
_only = click.option(
    "--only", multiple=True, metavar="MODEL", help="Only this model of the lists; may be repeated."
)
_workload = click.option(
    "--workload", multiple=True, metavar="NAME", help="Only models for this (video, image)."
)
_parallel = click.option(
    "--parallel", type=click.IntRange(1, 32), default=4, show_default=True, help="Files at once."
)


@click.group("models", epilog=_EXITS)
def command() -> None:
    """Models: listed, fetched, verified, counted.

    LIST is the name of a list in the image (comfyrun models list), or the path of a YAML file.
    """


@command.command("list", epilog=_EXITS)
@_lists
@_only
@_workload
@_folder
@_json
def list_(
    lists: tuple[str, ...],
    only: tuple[str, ...],
    workload: tuple[str, ...],
    folder: str | None,
    as_json: bool,
) -> None:
    """Which lists there are; of a LIST, what is here, missing, wrong."""
    from comfywork.models import modellist, show
    from comfywork.models.selection import choose

    where = _where(folder)
    loaded = [modellist.load(name) for name in lists or modellist.shipped()]
    rows = []
    for one in loaded:
        chosen = choose([one], only, workload)
        rows.append((one, chosen, {v.file.path: v for v in _quick(where, _files(chosen))}))
    if as_json:
        show.list_json(rows, where)
    elif lists:
        for one, chosen, verdicts in rows:
            show.one_list(one, chosen, verdicts)
    else:
        show.lists([(one, list(verdicts.values())) for one, _, verdicts in rows], where)
    _warn_unlocked(loaded)


@command.command(epilog=_EXITS)
@_lists
@_only
@_workload
@_folder
@_parallel
@click.option(
    "--unlocked", is_flag=True, help="Also files that no list has locked: what the server has today."
)
@click.option("--replace", is_flag=True, help="Replace a file that is here and wrong.")
@click.option("--wait", is_flag=True, help="Wait for another pull in the same folder.")
@click.option(
    "--retries", type=click.IntRange(0, 1000), default=8, show_default=True, help="Failures in a row."
)
@_json
def pull(
    lists: tuple[str, ...],
    only: tuple[str, ...],
    workload: tuple[str, ...],
    folder: str | None,
    parallel: int,
    unlocked: bool,
    replace: bool,
    wait: bool,
    retries: int,
    as_json: bool,
) -> None:
    """Fetch what is missing. HF_TOKEN (or HF_TOKEN_FILE) and HF_ENDPOINT are honoured.

    What was interrupted is gone on with; a right file is left alone; under a file's final name is the right file or
    none.
    """
    from comfywork.models import show
    from comfywork.models.hub import Hub
    from comfywork.models.outcome import exit_code
    from comfywork.models.progress import board
    from comfywork.models.pull import Pull
    from comfywork.models.selection import choose
    from comfywork.models.wire import Patience

    where = _where(folder)
    loaded = _load(lists)
    chosen = choose(loaded, only, workload)
    stop = _stopping()
    with board() as shown:
        outcomes = Pull(
            models=where,
            hub=Hub.from_environment(os.environ),
            board=shown,
            unlocked=unlocked,
            replace=replace,
            wait=wait,
            parallel=parallel,
            patience=Patience(failures=retries),
            stop=stop,
        ).run(chosen)
    if as_json:
        show.pulled_json(outcomes, where)
    else:
        show.pulled(outcomes, where)
    for hint in dict.fromkeys(outcome.hint for outcome in outcomes if outcome.hint):
        click.echo(hint, err=True)
    code = exit_code(outcomes)
    if code == 130:  # noqa: PLR2004
        click.echo("interrupted; the same command goes on from here", err=True)
    if unlocked:
        _warn_unlocked(loaded)
    _end(code)


@command.command(epilog=_EXITS)
@_lists
@_only
@_workload
@_folder
@click.option("--quick", is_flag=True, help="By size and earlier records; reads nothing from end to end.")
@_json
def verify(
    lists: tuple[str, ...],
    only: tuple[str, ...],
    workload: tuple[str, ...],
    folder: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Read every file again and compare; exit code 1 when one is wrong or not here."""
    from comfywork.models import show
    from comfywork.models.progress import board
    from comfywork.models.selection import choose
    from comfywork.models.verify import Verifier, bad

    where = _where(folder)
    loaded = _load(lists)
    files = _files(choose(loaded, only, workload))
    with board() as shown:
        verifier = Verifier(models=where, board=shown, stop=_stopping())
        verdicts = verifier.quick(files) if quick else verifier.full(files)
    if as_json:
        show.verify_json(verdicts, where, quick=quick)
    else:
        show.verify(verdicts, quick=quick)
    wrong = bad(verdicts)
    if wrong:
        click.echo(
            f"{len(wrong)} of {len(verdicts)} files are wrong or not here; fetch them: comfyrun models pull "
            f"{' '.join(lists)} (--replace for wrong ones)",
            err=True,
        )
    _warn_unlocked(loaded)
    _end(1 if wrong else 0)


@command.command(epilog=_EXITS)
@_lists
@_only
@_workload
@_folder
@click.option(
    "--target", multiple=True, metavar="NAME", help="gb10, h100, ada, ada-24gb, …; may be repeated."
)
@click.option(
    "--gpu-memory", type=click.FloatRange(min=0.5, max=10_000), metavar="GB", help="A card of this size."
)
@click.option(
    "--reserve", type=click.FloatRange(min=0, max=10_000), metavar="GB", help="Kept from the models."
)
@click.option(
    "--declared", is_flag=True, help="Count what sources declare, also where the weights are larger."
)
@_json
def budget(
    lists: tuple[str, ...],
    only: tuple[str, ...],
    workload: tuple[str, ...],
    folder: str | None,
    target: tuple[str, ...],
    gpu_memory: float | None,
    reserve: float | None,
    declared: bool,
    as_json: bool,
) -> None:
    """What fits on which target at once, by what others declare and by the files' sizes; and on the disk."""
    from comfywork.models import budget as sums
    from comfywork.models import show, targets
    from comfywork.models.selection import choose

    where = _where(folder)
    loaded = _load(lists)
    chosen = choose(loaded, only, workload)
    needs = sums.needs(chosen, declared_only=declared)
    fits = [sums.fit(needs, one) for one in targets.chosen(target, gpu_memory, reserve)]
    files = _files(chosen)
    if as_json:
        known = [file.estimate for file in files if file.estimate is not None]
        disk = {"bytes": sum(known), "unknown_files": len(files) - len(known), "free": _free(where)}
        show.budget_json(needs, fits, targets.here(), disk)
    else:
        show.budget(needs, fits, targets.here(), (show.total(files), _free_text(where)))
    _warn_unlocked(loaded)


@command.command(epilog=_EXITS)
@click.argument("reference", metavar="LIST")
@click.option(
    "--output", "-o", metavar="FILE", help="Write there, in place of LIST; needed for one in the image."
)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 when something would change.")
@click.option("--fetch", is_flag=True, help="Read whole files of which no server states the hash.")
@click.option(
    "--upgrade", metavar="REVISION", help="Take the newest commit of this branch or tag, e.g. main."
)
@_parallel
@_json
def lock(
    reference: str,
    output: str | None,
    check: bool,
    fetch: bool,
    upgrade: str | None,
    parallel: int,
    as_json: bool,
) -> None:
    """Fill in commit, size and sha256 from the servers' metadata; comments stay."""
    from dataclasses import asdict

    from comfywork.models import locking, modellist, show
    from comfywork.models.hub import Hub
    from comfywork.models.outcome import gravest
    from comfywork.models.selection import unique

    loaded = modellist.load(reference)
    if loaded.shipped and not (output or check):
        raise ConfigError(
            f"{loaded.name} is part of the image and is not written",
            hint=f"give a file: --output {loaded.name}.yaml",
        )
    changes = locking.Locker(
        hub=Hub.from_environment(os.environ),
        stop=_stopping(),
        said=lambda text: click.echo(text, err=True),
        fetch=fetch,
        upgrade=upgrade,
        parallel=parallel,
    ).run(unique(loaded.models))
    if as_json:
        show.as_json(
            {"list": str(loaded.path), "files": [{**asdict(c), "changes": c.values} for c in changes]}
        )
    else:
        show.locked(changes)
    failed = [change for change in changes if change.problem]
    if failed:
        for hint in dict.fromkeys(change.hint for change in failed if change.hint):
            click.echo(hint, err=True)
        click.echo(f"{len(failed)} of {len(changes)} files cannot be locked; nothing was written", err=True)
        _end(gravest(change.exit_code for change in failed))
    changed = any(change.values for change in changes)
    if check:
        click.echo(
            "the list is not what the servers say" if changed else "the list is locked and right", err=True
        )
        _end(1 if changed else 0)
    target = Path(output) if output else loaded.path
    if changed or target != loaded.path:
        locking.save(target, locking.write(loaded.path.read_bytes(), loaded, changes))
        click.echo(f"written: {target}", err=True)
    else:
        click.echo("nothing to change", err=True)


def _load(references: Sequence[str]) -> list[Loaded]:
    from comfywork.models import modellist

    if not references:
        raise ConfigError(
            "which list?", hint=f"lists in the image: {', '.join(modellist.shipped())}; or a file's path"
        )
    return [modellist.load(reference) for reference in references]


def _files(chosen: Sequence[Model]) -> list[ModelFile]:
    from comfywork.models.selection import unique

    return unique(chosen)


def _quick(where: Path, files: Sequence[ModelFile]) -> list[Any]:
    from comfywork.models.progress import board
    from comfywork.models.verify import Verifier

    return Verifier(models=where, board=board()).quick(files)


def _where(folder: str | None) -> Path:
    given = folder or os.environ.get("MODELS_PATH")
    return Path(given) if given else Path(os.environ.get("COMFY_DATA") or "/data") / "models"


def _free(where: Path) -> int:
    import shutil

    while not where.exists() and where != where.parent:
        where = where.parent
    return shutil.disk_usage(where).free


def _free_text(where: Path) -> str:
    from comfywork.quantities import human

    return f"{human(_free(where))} free in {where}"


def _warn_unlocked(loaded: Sequence[Loaded]) -> None:
    from comfywork.models.show import UNLOCKED

    open_ones = [one.name for one in loaded if not one.locked]
    if open_ones:
        click.echo(f"{', '.join(open_ones)}: {UNLOCKED}", err=True)


def _stopping() -> threading.Event:
    """Set by Ctrl-C and SIGTERM; a second one ends the process as usual."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def handler(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    return stop


def _end(code: int) -> None:
    if code:
        raise click.exceptions.Exit(code)
