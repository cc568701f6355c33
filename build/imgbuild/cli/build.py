from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from imgbuild.cli.app import (
    App,
    base_option,
    budget_options,
    command_again,
    complete_target,
    parse_sources,
    source_option,
    wheelhouse_option,
    wheels_option,
)

if TYPE_CHECKING:
    from imgbuild.build import Report


@click.command("build")
@click.option(
    "-t", "--target", "targets", multiple=True, shell_complete=complete_target, help="May be repeated."
)
@click.option("--all", "everything", is_flag=True, help="Every target of the matrix.")
@click.option("--builder", help="A buildx builder that exists already.")
@click.option(
    "--on",
    multiple=True,
    metavar="TARGET|PLATFORM=CONTEXT",
    help="Build it on that Docker context's engine, all at once; may be repeated.",
)
@click.option("--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True)
@click.option("--load", is_flag=True, help="Into the local engine (the default).")
@click.option(
    "--push", metavar="REGISTRY/PATH", help="To a registry instead; layers are compressed with zstd."
)
@click.option("--index", metavar="TAG", help="With --push: one reference over all of them, a platform each.")
@click.option(
    "--cache-from", metavar="REGISTRY/PATH", help="Read a registry's build cache, REGISTRY/PATH/cache:TARGET."
)
@click.option("--cache-to", metavar="REGISTRY/PATH", help="Store this build's cache there.")
@click.option("--output", help="BuildKit's own --output instead, such as type=oci,dest=image.tar.")
@source_option
@wheels_option
@click.option("--no-fallback", is_flag=True, help="Fail where a pinned source cannot be reached.")
@base_option
@wheelhouse_option
@budget_options
@click.option("--refresh-base", is_flag=True, help="Bootstrap anew, with Debian's latest fixes.")
@click.option("--no-cache", is_flag=True, help="Run every stage again; kernels in the wheelhouse stay.")
@click.option("--progress", type=click.Choice(["auto", "plain", "json"]), default="auto", show_default=True)
@click.option("--keep-going", is_flag=True, help="Go on with the other targets when one fails.")
@click.option("--force", is_flag=True, help="Build although the disk looks too small.")
@click.option("--dry-run", is_flag=True, help="Say what would be built, and build nothing.")
@click.option(
    "--metadata-file", type=click.Path(path_type=Path, dir_okay=False), help="Digests and sizes, as JSON."
)
@click.pass_obj
def command(
    app: App,
    targets: tuple[str, ...],
    everything: bool,
    builder: str | None,
    on: tuple[str, ...],
    engine: str,
    load: bool,
    push: str | None,
    index: str | None,
    cache_from: str | None,
    cache_to: str | None,
    output: str | None,
    sources: tuple[str, ...],
    wheels: tuple[Path, ...],
    no_fallback: bool,
    base: str,
    where: str | None,
    jobs: int | None,
    memory_share: float,
    refresh_base: bool,
    no_cache: bool,
    progress: str,
    keep_going: bool,
    force: bool,
    dry_run: bool,
    metadata_file: Path | None,
) -> None:
    """Build images."""
    from imgbuild import index as indexes
    from imgbuild import machines
    from imgbuild.artifacts import Artifacts
    from imgbuild.build import Builder, Options, raise_for
    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.errors import ConfigError
    from imgbuild.kernelbuild import check_jobs
    from imgbuild.report import notice, say

    if sum(map(bool, (load, push, output))) > 1:
        raise ConfigError("--load, --push and --output exclude one another")
    if everything and targets:
        raise ConfigError("--all and --target exclude one another")
    if on and (engine == "podman" or builder or output):
        raise ConfigError("--on names Docker engines; --engine podman, --builder and --output exclude it")
    if engine == "podman":
        _check_podman(base, elsewhere=bool(push or output), cached=bool(cache_from or cache_to))
    if on:
        selected, where_on = machines.assign(on, app.matrix(), targets, everything=everything, env=app.env)
    else:
        selected, where_on = app.matrix().select(targets, everything=everything), None
    options = Options(
        sources=parse_sources(sources, app.matrix().common.kernels),
        fallback=not no_fallback,
        base=cast("Any", base),  # click.Choice holds the same words
        refresh_base=refresh_base,
        builder=builder,
        output=output,
        push=push,
        cache_from=_place(cache_from, app),
        cache_to=_place(cache_to, app),
        no_cache=no_cache,
        progress=progress,
        dry_run=dry_run,
        keep_going=keep_going,
        force=force,
        jobs=jobs,
        memory_share=memory_share,
    )
    check_jobs(jobs, memory_share)
    over = indexes.reference(index, app.matrix(), selected, options) if index else None
    work = Builder(
        project=app.project(),
        matrix=app.matrix(),
        settings=app.settings(wheels),
        env=app.env,
        cache=app.cache,
        engine=Podman(app.env) if engine == "podman" else Docker(app.env),
        say=say,
        notice=notice,
        registry=Artifacts(where, env=app.env) if where else None,
    )
    report = machines.build(work, selected, where_on, options) if where_on else work.build(selected, options)
    _show(report)
    if metadata_file:
        _write_metadata(report, metadata_file)
    if dry_run:
        return
    again = command_again(without=("targets", "everything", "on"))
    if where_on:
        machines.raise_for(report, where_on, command=again, index=over)
    raise_for(report, again)
    if over:
        _merge(app, over, report, builder)


def _merge(app: App, over: str, report: Report, builder: str | None) -> None:
    from imgbuild.engines.docker import Docker
    from imgbuild.index import merge
    from imgbuild.report import say

    # buildx wants some engine, and this machine need not have one.
    context = next((o.machine for o in report.outcomes if o.machine), None)
    digest = merge(over, report, env=Docker(app.env, context=context).env, builder=builder)
    say(f"{over}: {', '.join(o.target for o in report.outcomes)}, {digest}")


def _check_podman(base: str, *, elsewhere: bool, cached: bool) -> None:
    from imgbuild.errors import ConfigError

    if base == "registry":
        raise ConfigError("--engine podman starts from a bootstrapped base", hint="leave --base out")
    if elsewhere:
        raise ConfigError("--engine podman loads into Podman's own store; podman push publishes from there")
    if cached:
        raise ConfigError("--cache-from and --cache-to are BuildKit's; --engine podman has none")


def _place(where: str | None, app: App) -> str | None:
    """REGISTRY/PATH, checked and without a slash at its end."""
    from imgbuild.artifacts import Artifacts

    return Artifacts(where, env=app.env).where if where else None


def _show(report: Report) -> None:
    from imgbuild.report import human, table

    several = any(o.machine for o in report.outcomes)
    table(
        "",
        ["target", *(["machine"] if several else []), "state", "tag", "digest", "size", "seconds"],
        [
            [
                o.target,
                *([o.machine or "–"] if several else []),
                o.state,
                "\n".join(o.tags),
                (o.digest or "–")[:19],
                human(o.size) if o.size else "–",
                f"{o.seconds:.0f}",
            ]
            for o in report.outcomes
        ],
        right=(5, 6) if several else (4, 5),
    )


def _write_metadata(report: Report, path: Path) -> None:
    from dataclasses import asdict

    from imgbuild.locking import write_atomically
    from imgbuild.render import pretty

    data = {
        "seconds": round(report.seconds, 1),
        "log": str(report.log) if report.log else None,
        "targets": {o.target: asdict(o) for o in report.outcomes},
        "buildkit": report.metadata,
    }
    write_atomically(path, pretty(data))
