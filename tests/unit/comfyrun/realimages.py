"""The real matrix's profiles, and the real ComfyUIs' flags."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

from comfyrun import flagtable, profile
from comfyrun.flagtable import FlagTable
from comfyrun.profile import Image

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]
PINNED, FALLBACK = "0.33.0", "0.3.75"


@cache
def profile_json(target: str, version: str = PINNED) -> dict[str, Any]:
    """What is baked into the target's image."""
    from imgbuild.matrix import load_matrix
    from imgbuild.plan import make_plan
    from imgbuild.project import Project
    from imgbuild.sources import fallback_source

    matrix = load_matrix(ROOT / "images")
    source = None if version == PINNED else fallback_source(matrix)
    plan = make_plan(Project(root=ROOT, writable=False), matrix, matrix.targets[target], source=source)
    value: dict[str, Any] = json.loads(json.dumps(plan.profile))
    return value


@cache
def targets() -> tuple[str, ...]:
    from imgbuild.matrix import load_matrix

    return tuple(load_matrix(ROOT / "images").targets)


def image(target: str, version: str = PINNED, **changes: Any) -> Image:
    return dataclasses.replace(profile.parse(profile_json(target, version), "profile.json"), **changes)


@cache
def table(version: str = PINNED) -> FlagTable:
    return flagtable.read(GOLDEN / f"flags-{version}.json")
