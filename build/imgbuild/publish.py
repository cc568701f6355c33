"""Publishing, end to end: each target out of the engine's cache, to the registry by digest, and all tags at the end."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.build import raise_for
from imgbuild.errors import BuildError, ConfigError, UnsoundError, VerificationError
from imgbuild.layout import Layout
from imgbuild.reference import is_tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imgbuild.build import Builder, Options, Report
    from imgbuild.matrix import Target
    from imgbuild.plan import Plan
    from imgbuild.publisher import Publisher, Staged, Tag


_ABANDONED = 24 * 3600.0  # seconds after which nobody can still be sending a folder


@dataclass(frozen=True, kw_only=True)
class Published:
    images: tuple[Staged, ...]
    tags: tuple[Tag, ...]
    """All of them, those of the combined index last."""
    strange: tuple[str, ...]
    """Targets of which this engine has an image with other layers: what was tested here is not what is published."""
    seconds: float


def publish(
    builder: Builder,
    publisher: Publisher,
    targets: Sequence[Target],
    options: Options,
    *,
    combined: str | None = None,
) -> Published:
    """Publish targets; tags move when all of them are in the registry, and else none does.

    A target that nobody built yet is built. `combined` names an index over all of them. Raises what building raises, and
    what `Publisher` does.
    """
    begun = time.monotonic()
    image = builder.matrix.common.image
    if combined is not None:
        check_combined({t.name: t.platform for t in targets}, combined, builder.matrix.targets)
    publisher.check(image)
    staged, strange = [], []
    folder = _work_folder(builder.cache)
    for target in targets:
        with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=folder) as work:
            export = Path(work) / "layout"
            report = builder.build([target], replace(options, export=export))
            _refuse_failed(report, publisher)
            try:
                layout = Layout(export)
            except UnsoundError as e:
                raise VerificationError(f"{target.name}: the engine gave out no image: {e}") from None
            (plan,) = report.plans
            staged.append(publisher.stage(plan, layout))
            if _differs(builder, plan, layout):
                strange.append(target.name)
    tags = publisher.finish(staged, image, combined)
    return Published(
        images=tuple(staged), tags=tags, strange=tuple(strange), seconds=time.monotonic() - begun
    )


def _work_folder(cache: Path) -> Path:
    """Where images lie on their way; what a publish that was killed left there long ago goes."""
    folder = cache / "publish"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _refuse_failed(report: Report, publisher: Publisher) -> None:
    """All or none: what is missing keeps the others' tags where they are, and the command is to be repeated whole."""
    try:
        raise_for(report, "")
    except BuildError as e:
        again = f"; when it builds: {publisher.again}" if publisher.again else ""
        raise BuildError(
            f"nothing is published, no tag has moved\n{e.message}", hint=f"mend it{again}"
        ) from None


def _differs(builder: Builder, plan: Plan, layout: Layout) -> bool:
    """Whether the engine has an image of that name with other layers; said, because tests may have been of that one."""
    here = builder.engine.find(plan.tags[0])
    there = layout.config(layout.image(plan.platform).manifest()).rootfs.diff_ids
    if here is None or not here.layers or here.layers == there:
        return False
    changed = sum(a != b for a, b in itertools.zip_longest(here.layers, there))
    builder.notice(
        f"NOT the same as {plan.tags[0]} of this engine: {changed} of {len(there)} layers differ.",
        [
            "That image was built from other files than those that are here now; what was tested on it is not proven of",
            f"what is published. To look at the new one: imgbuild build -t {plan.name}, then imgbuild test -t {plan.name}.",
        ],
    )
    return True


def check_combined(platforms: Mapping[str, str], name: str, taken: Iterable[str]) -> None:
    """ConfigError unless targets, given with their platforms, can stand in one index under that name."""
    by_platform: dict[str, str] = {}
    for target, platform in platforms.items():
        if other := by_platform.get(platform):
            raise ConfigError(
                f"--combined-index {name}: {other} and {target} are both {platform}, and an index has one image a platform",
                hint="name one target a platform; every target has its own tag besides",
            )
        by_platform[platform] = target
    if len(platforms) < 2:  # noqa: PLR2004
        raise ConfigError(f"--combined-index {name} combines targets of two platforms or more")
    if not is_tag(name):
        raise ConfigError(
            f"--combined-index {name!r} is no tag", hint="letters, digits, _ . and -, at most 128 of them"
        )
    if name in set(taken):
        raise ConfigError(f"--combined-index {name}: that is the tag of a target")
