from __future__ import annotations

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
    from pathlib import Path

    from imgbuild.publish import Published


@click.command("publish")
@click.option(
    "-t", "--target", "targets", multiple=True, shell_complete=complete_target, help="May be repeated."
)
@click.option("--all", "everything", is_flag=True, help="Every target of the matrix.")
@click.option(
    "--registry",
    metavar="REGISTRY/PATH",
    required=True,
    envvar="IMGBUILD_REGISTRY",
    show_envvar=True,
    help="Where to; the image's own name is put behind it.",
)
@click.option(
    "--combined-index", "combined", metavar="TAG", help="One more tag, for all these targets: one a platform."
)
@click.option("--sign", "key", metavar="KEY", help="Sign with cosign: a key's file, or its address in a KMS.")
@click.option("--mount-from", "mount", metavar="PATH", help="A repository of that registry with equal blobs.")
@click.option(
    "--date", "day", metavar="YYYYMMDD", help="Of the tag that never moves; today (UTC), if not given."
)
@click.option("--builder", help="A buildx builder that exists already.")
@source_option
@wheels_option
@click.option("--no-fallback", is_flag=True, help="Fail where a pinned source cannot be reached.")
@base_option
@wheelhouse_option
@budget_options
@click.option("--progress", type=click.Choice(["auto", "plain", "json"]), default="auto", show_default=True)
@click.option("--force", is_flag=True, help="Go on although the disk looks too small.")
@click.option("--dry-run", is_flag=True, help="Say what would move and what is there; send nothing.")
@click.option("--json", "as_json", is_flag=True, help="What was published, as JSON.")
@click.pass_obj
def command(
    app: App,
    targets: tuple[str, ...],
    everything: bool,
    registry: str,
    combined: str | None,
    key: str | None,
    mount: str | None,
    day: str | None,
    builder: str | None,
    sources: tuple[str, ...],
    wheels: tuple[Path, ...],
    no_fallback: bool,
    base: str,
    where: str | None,
    jobs: int | None,
    memory_share: float,
    progress: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put images into a registry, with SBOM, provenance and signature; tags last.

    Three tags a target: its version's, its own, and one of the day that never moves.
    """
    from datetime import UTC, datetime

    from imgbuild.artifacts import Artifacts
    from imgbuild.build import Builder, Options
    from imgbuild.engines.docker import Docker
    from imgbuild.errors import ConfigError
    from imgbuild.kernelbuild import check_jobs
    from imgbuild.publish import publish
    from imgbuild.publisher import Publisher
    from imgbuild.report import notice, say

    if everything and targets:
        raise ConfigError("--all and --target exclude one another")
    selected = app.matrix().select(targets, everything=everything)
    check_jobs(jobs, memory_share)
    publisher = Publisher(
        registry=registry,
        env=app.env,
        say=say,
        day=day or datetime.now(tz=UTC).strftime("%Y%m%d"),
        key=key,
        mount=mount,
        dry_run=dry_run,
        again=command_again(without=()),
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
        registry=Artifacts(where, env=app.env) if where else None,
    )
    options = Options(
        sources=parse_sources(sources, app.matrix().common.kernels),
        fallback=not no_fallback,
        base=cast("Any", base),  # click.Choice holds the same words
        builder=builder,
        progress=progress,
        force=force,
        jobs=jobs,
        memory_share=memory_share,
    )
    done = publish(work, publisher, selected, options, combined=combined)
    if as_json:
        _print(done, dry_run=dry_run)
    else:
        _show(done, dry_run=dry_run)


def _show(done: Published, *, dry_run: bool) -> None:
    from imgbuild.report import human, say, table

    table(
        "would be published" if dry_run else "published",
        ["target", "platform", "digest", "to send" if dry_run else "sent", "there", "mounted", "seconds"],
        [
            [
                s.target,
                s.platform,
                s.digest,
                human(s.moved.sent),
                human(s.moved.there),
                human(s.moved.mounted),
                f"{s.seconds:.0f}",
            ]
            for s in done.images
        ],
        right=(3, 4, 5, 6),
    )
    table(
        "",
        ["tag", "state", "before"],
        [[str(t.reference), t.state, (t.before or "–")[:19]] for t in done.tags],
    )
    say(f"{'nothing was sent' if dry_run else 'published'}; {done.seconds:.0f} s in all")


def _print(done: Published, *, dry_run: bool) -> None:
    import json
    from dataclasses import asdict

    data = {
        "dry_run": dry_run,
        "seconds": round(done.seconds, 1),
        "images": {
            s.target: {
                "platform": s.platform,
                "digest": s.digest,
                "index": s.top.digest,
                "sbom": s.sbom,
                "signed": s.signed,
                "bytes": asdict(s.moved),
                "differs_from_engine": s.target in done.strange,
                "seconds": round(s.seconds, 1),
            }
            for s in done.images
        },
        "tags": [{"tag": str(t.reference), "state": t.state, "before": t.before} for t in done.tags],
    }
    click.echo(json.dumps(data, indent=2))
