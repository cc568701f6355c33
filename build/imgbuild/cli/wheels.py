from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from imgbuild.cli.app import (
    App,
    base_option,
    budget_options,
    complete_target,
    parse_sources,
    source_option,
    wheelhouse_option,
    wheels_option,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from imgbuild.artifacts import Artifacts
    from imgbuild.wheelhouse import Entry, Wheelhouse


@click.group("wheels")
def command() -> None:
    """Compiled kernels: kept, looked at, shared with a registry."""


kernel_option = click.option("--kernel", "kernels", multiple=True, help="Only this kernel; may be repeated.")
keys_argument = click.argument("keys", nargs=-1, metavar="[KEY]...")
target_option = click.option(
    "-t", "--target", "targets", multiple=True, shell_complete=complete_target, help="May be repeated."
)
everything_option = click.option("--all", "everything", is_flag=True, help="For every target of the matrix.")


@command.command("build")
@target_option
@everything_option
@kernel_option
@source_option
@wheelhouse_option
@budget_options
@click.option("--no-fallback", is_flag=True, help="Fail where a pinned source cannot be reached.")
@base_option
@wheels_option
@click.option("--builder", help="A buildx builder that exists already.")
@click.option("--no-cache", is_flag=True, help="Run every stage again.")
@click.option("--progress", type=click.Choice(["auto", "plain", "json"]), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would be compiled, and compile nothing.")
@click.pass_obj
def build(
    app: App,
    targets: tuple[str, ...],
    everything: bool,
    kernels: tuple[str, ...],
    sources: tuple[str, ...],
    where: str | None,
    jobs: int | None,
    memory_share: float,
    no_fallback: bool,
    base: str,
    wheels: tuple[Path, ...],
    builder: str | None,
    no_cache: bool,
    progress: str,
    dry_run: bool,
) -> None:
    """Compile what targets need and neither this machine nor the registry has."""
    from imgbuild.build import Builder, Options
    from imgbuild.engines.docker import Docker
    from imgbuild.errors import ConfigError, SelectionError
    from imgbuild.kernelbuild import check_jobs
    from imgbuild.report import notice, say

    check_jobs(jobs, memory_share)
    if everything and targets:
        raise ConfigError("--all and --target exclude one another")
    recipes = app.matrix().common.kernels
    _check_known("kernel", kernels, recipes)
    selected = [t for t in app.matrix().select(targets, everything=everything) if t.kernels]
    if not selected:
        raise SelectionError("none of these targets has a kernel")
    options = Options(
        sources=parse_sources(sources, recipes),
        fallback=not no_fallback,
        base=cast("Any", base),  # click.Choice holds the same words
        builder=builder,
        no_cache=no_cache,
        progress=progress,
        dry_run=dry_run,
        jobs=jobs,
        memory_share=memory_share,
        kernels=kernels,
    )
    work = Builder(
        project=app.project(),
        matrix=app.matrix(),
        settings=app.settings(wheels),
        env=app.env,
        cache=app.cache,
        engine=Docker(app.env),
        say=say,
        notice=notice,
        registry=artifacts(app, where) if where else None,
    )
    entries = work.compile(selected, options)
    if entries:
        _show(entries)
    elif not dry_run:
        say("nothing was to be compiled")


@command.command("list")
@kernel_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_(app: App, kernels: tuple[str, ...], as_json: bool) -> None:
    """List the kernels of this machine's wheelhouse."""
    import json
    from dataclasses import asdict

    from imgbuild.report import say

    store = wheelhouse(app)
    entries = _chosen(store, kernels)
    if as_json:
        rows = [
            asdict(e) | {"wheel": str(e.wheel), "arches": e.arches, "platform": e.platform} for e in entries
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not entries:
        say(f"the wheelhouse is empty: {store.folder}")
        return
    _show(entries)


@command.command("pull")
@target_option
@everything_option
@kernel_option
@wheelhouse_option
@click.pass_obj
def pull(
    app: App, targets: tuple[str, ...], everything: bool, kernels: tuple[str, ...], where: str | None
) -> None:
    """Bring what targets need from a registry.

    What the registry has not is said, and left to `wheels build`.
    """
    from imgbuild.report import human, say

    registry = artifacts(app, where)
    store, recipes = wheelhouse(app), app.matrix().common.kernels
    for kernel, key in _needed(app, targets, everything, kernels):
        if store.get(kernel, key, distribution=recipes[kernel].distribution):
            say(f"{kernel} {key} is here already")
        elif entry := registry.pull(kernel, key, store, distribution=recipes[kernel].distribution):
            say(f"{kernel} {key} pulled: {human(entry.size)}, {entry.seconds:.0f} s of compiling spared")
        else:
            say(f"{kernel} {key} is not at {registry.where}: imgbuild wheels build compiles it")


@command.command("push")
@keys_argument
@kernel_option
@wheelhouse_option
@click.option("--force", is_flag=True, help="Send also what the registry has, in its place.")
@click.pass_obj
def push(app: App, keys: tuple[str, ...], kernels: tuple[str, ...], where: str | None, force: bool) -> None:
    """Share this machine's kernels by way of a registry.

    All of them, or those named. What the registry has already is not sent again.
    """
    from imgbuild.errors import SelectionError, VerificationError
    from imgbuild.report import human, say

    registry, store = artifacts(app, where), wheelhouse(app)
    entries = _chosen(store, kernels, keys)
    if not entries:
        raise SelectionError(f"the wheelhouse is empty: {store.folder}", hint="imgbuild wheels build")
    unsound = []
    for entry in entries:
        sound = store.get(entry.kernel, entry.key)
        if sound is None:
            unsound.append(f"{entry.kernel} {entry.key}")
            continue
        digest = registry.push(sound, replace=force)
        if digest is None:
            say(f"{registry.name(sound.kernel, sound.key)} is there already")
            continue
        say(f"pushed {registry.name(sound.kernel, sound.key)}@{digest[:19]}, {human(sound.size)}")
    if unsound:
        raise VerificationError(
            f"not pushed, because not sound: {', '.join(unsound)}",
            hint="imgbuild wheels build compiles them again",
        )


@command.command("verify")
@keys_argument
@kernel_option
@click.pass_obj
def verify(app: App, keys: tuple[str, ...], kernels: tuple[str, ...]) -> None:
    """Check this machine's kernels.

    Their hashes, the wheels' own records, and the code in their binaries. Nothing is changed.
    """
    import shlex

    from imgbuild.errors import VerificationError
    from imgbuild.report import say, table

    store = wheelhouse(app)
    found = [v for v in store.verify(keys=keys) if not kernels or v.kernel in kernels]
    _check_known("kernel", kernels, {v.kernel for v in found})
    _check_known("key", keys, {v.key for v in found})
    if not found:
        say(f"the wheelhouse is empty: {store.folder}")
        return
    table(
        "",
        ["kernel", "key", "code for", "state"],
        [
            [v.kernel, v.key, ", ".join(v.entry.arches) if v.entry else "–", v.problem or "sound"]
            for v in found
        ],
    )
    if bad := [v for v in found if v.problem]:
        folders = shlex.join(str(store.folder / v.kernel / v.key) for v in bad)
        raise VerificationError(
            "\n".join(f"{v.kernel} {v.key}: {v.problem}" for v in bad),
            hint=f"rm -r {folders}; the next build compiles what is missing",
        )


@command.command("prune")
@target_option
@kernel_option
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune(app: App, targets: tuple[str, ...], kernels: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Remove kernels that no target needs any more.

    With --target, those that these targets do not need. What was set aside as unsound goes too.
    """
    from imgbuild.report import human, say

    store = wheelhouse(app)
    keep = set(_needed(app, targets, not targets, kernels))
    for kernel in kernels or (None,):
        going = store.prune(keep=keep, kernel=kernel, dry_run=True)
        if not dry_run and not yes and going:
            for entry in going:
                say(f"{entry.kernel} {entry.key}: {human(entry.size)}, {entry.seconds:.0f} s of compiling")
            if not click.confirm("Remove these?", err=True):
                say("nothing was removed")
                return
        for entry in going if dry_run else store.prune(keep=keep, kernel=kernel):
            say(f"{'would remove' if dry_run else 'removed'} {entry.kernel} {entry.key}: {human(entry.size)}")


def _show(entries: Sequence[Entry]) -> None:
    from imgbuild.report import human, table

    table(
        "",
        ["kernel", "key", "version", "code for", "platform", "size", "seconds", "peak", "made"],
        [
            [
                e.kernel,
                e.key,
                e.version,
                ", ".join(e.arches) or "–",
                e.platform,
                human(e.size),
                f"{e.seconds:.0f}",
                human(e.peak_bytes) if e.peak_bytes else "–",
                e.made,
            ]
            for e in entries
        ],
        right=(5, 6, 7),
    )


def wheelhouse(app: App) -> Wheelhouse:
    """This machine's store."""
    from imgbuild.report import warn
    from imgbuild.wheelhouse import Wheelhouse

    return Wheelhouse(app.cache / "wheelhouse", say=warn)


def artifacts(app: App, where: str | None) -> Artifacts:
    from imgbuild.artifacts import Artifacts
    from imgbuild.errors import ConfigError

    if not where:
        raise ConfigError(
            "no registry was named", hint="--wheelhouse REGISTRY/PATH, or the variable IMGBUILD_WHEELHOUSE"
        )
    return Artifacts(where, env=app.env)


def _needed(
    app: App, targets: tuple[str, ...], everything: bool, kernels: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    from imgbuild.errors import ConfigError
    from imgbuild.kernels import wanted

    if everything and targets:
        raise ConfigError("--all and --target exclude one another")
    _check_known("kernel", kernels, app.matrix().common.kernels)
    selected = app.matrix().select(targets, everything=everything)
    return wanted(app.project(), app.matrix(), selected, kernels)


def _chosen(store: Wheelhouse, kernels: Sequence[str], keys: Sequence[str] = ()) -> list[Entry]:
    """Entries by kernel and key; a name that fits none is an error."""
    entries = store.entries()
    _check_known("kernel", kernels, {e.kernel for e in entries})
    _check_known("key", keys, {e.key for e in entries})
    return [e for e in entries if (not kernels or e.kernel in kernels) and (not keys or e.key in keys)]


def _check_known(what: str, asked: Sequence[str], known: Collection[str]) -> None:
    from imgbuild.errors import SelectionError, nearest

    for name in asked:
        if name not in known:
            near = nearest(name, known)
            raise SelectionError(
                f"no {what} {name!r}" + (f"; did you mean {near!r}?" if near else ""),
                hint=f"there {'is' if len(known) == 1 else 'are'}: {', '.join(sorted(known)) or 'none'}",
            )
