"""One reference over images of several platforms, made in the registry out of their digests."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.errors import ConfigError, RegistryError
from imgbuild.reference import is_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.build import Options, Report
    from imgbuild.matrix import Matrix, Target

_TIMEOUT = 300.0


def reference(tag: str, matrix: Matrix, targets: Sequence[Target], options: Options) -> str:
    """`REGISTRY/PATH/IMAGE:TAG` beside the images that are pushed.

    ConfigError for what cannot be one, and unless each target has a platform of its own: an index is asked by
    platform alone.
    """
    if options.push is None:
        raise ConfigError("--index is made of pushed images", hint="--push REGISTRY/PATH")
    if not is_tag(tag):
        raise ConfigError(f"--index {tag!r} is no tag", hint="--index latest, or a version")
    if tag in matrix.targets:
        raise ConfigError(f"--index {tag}: that tag is the target's own", hint="--index latest, or a version")
    if twice := [p for p, count in Counter(t.platform for t in targets).items() if count > 1]:
        names = ", ".join(t.name for t in targets if t.platform == twice[0])
        raise ConfigError(
            f"--index: {names} are all {twice[0]}, and an index holds one image a platform",
            hint="name one of them, or leave --index out: every target has a tag of its own",
        )
    return f"{options.push.rstrip('/')}/{matrix.common.image}:{tag}"


def merge(name: str, report: Report, *, env: Mapping[str, str], builder: str | None = None) -> str:
    """Point `name` to every image of a finished report, by digest; return the index's digest.

    Attestations come with their images. RegistryError when the registry refuses, and then `name` is what it was.
    """
    sources: list[str] = []
    for outcome in report.outcomes:
        if outcome.state not in ("built", "cached") or outcome.digest is None:
            raise RegistryError(f"{name} was not made: {outcome.target} has no digest in the registry")
        sources.append(f"{_repository(outcome.tags[0])}@{outcome.digest}")
    which = ["--builder", builder] if builder else []
    tools = ["docker", "buildx", "imagetools"]
    done = proc.run(
        [*tools, "create", *which, "--tag", name, *sources], env=env, check=False, timeout=_TIMEOUT
    )
    if done.returncode:
        raise RegistryError(
            f"{name} was not made: {_last(done.stderr)}",
            hint="the images are there, each under its own tag; the same command makes the index again",
        )
    argv = [*tools, "inspect", *which, "--format", "{{json .Manifest}}", name]
    shown = proc.run(argv, env=env, check=False, timeout=_TIMEOUT)
    if shown.returncode:
        raise RegistryError(f"{name} was made and cannot be read: {_last(shown.stderr)}")
    found: Any = json.loads(shown.stdout)
    there = {
        f"{m['platform']['os']}/{m['platform']['architecture']}"
        for m in found.get("manifests", ())
        if m.get("platform", {}).get("os") != "unknown"  # attestations
    }
    if len(there) != len(sources):
        raise RegistryError(
            f"{name} holds {', '.join(sorted(there)) or 'nothing'}: {len(sources)} were put in"
        )
    return str(found["digest"])


def _repository(tag: str) -> str:
    return tag.rpartition(":")[0]


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("ERROR: ") if lines else "no reason was given"
