"""What the tests of pull, look and carry share."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kit import imgbuild
from tinyimages import TinyImage

if TYPE_CHECKING:
    import subprocess

    from faultproxy import FaultProxy

    from imgbuild.plan import Plan
    from imgbuild.project import Project

NAME = f"imgbuild-e2e-pull-{os.getpid()}"  # two runs may go on beside one another
PATH = f"team/{NAME}"
_RUN = random.SystemRandom().getrandbits(64)


def text(seed: int, size: int) -> bytes:
    """Bytes that compress, so that levels of gzip differ; others in each run, since the engine forgets slowly."""
    return bytes(random.Random(_RUN + seed).choices(b"abcdef", k=size))


def tiny(plan: Plan, *, salt: int = 0, **changes: Any) -> TinyImage:
    """An image of that plan: two layers of packages that targets of a platform share, and one of its own.

    Another `salt` is other content: what the engine still has of one test is no help to the next.
    """
    layers = [
        {"opt/base": text(1000 * salt + len(plan.base.name) + len(plan.platform), 300_000)},
        {
            "opt/venv/lib/python3.13/site-packages/torch-2.13.0.dist-info/METADATA": b"Name: torch\nVersion: 2.13.0\n\n",
            "opt/torch": text(1000 * salt + 2, 200_000),
        },
        {"opt/own": text(1000 * salt + sum(plan.name.encode()), 100_000)},
    ]
    return replace(TinyImage(layers=layers, labels=plan.labels, platform=plan.platform), **changes)


def fetched(registry: FaultProxy) -> set[str]:
    """Digests of the blobs that were fetched since the last `clear`."""
    return {w.rpartition("/")[2] for w in registry.seen if w.startswith("GET ") and "/blobs/" in w}


def pull(own: Project, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return imgbuild(own, "pull", *words, env=env)
