"""The jobs of a CI: one a target, on a machine that runs its platform as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgbuild.matrix import Ci, Matrix, Target

NO_JOBS = '{"include":[]}'
"""What `one_line` gives when there is nothing to do; a workflow compares with it, since GitHub fails on it."""


def settings(matrix: Matrix) -> Ci:
    """images/comfyui.yaml's `ci`; ConfigError when it has none."""
    if matrix.common.ci is None:
        raise ConfigError(
            "images/comfyui.yaml has no `ci`: nothing says which machines of a CI run which platform",
            hint="imgbuild schema shows what it holds",
        )
    return matrix.common.ci


def jobs(matrix: Matrix, targets: Iterable[Target]) -> dict[str, Any]:
    """A job for each target, in GitHub's form; `include` is empty when there is none."""
    runners = settings(matrix).runners
    rows = [{"target": t.name, "platform": t.platform, "runner": runners[t.platform]} for t in targets]
    return {"include": rows}


def one_line(found: dict[str, Any]) -> str:
    """Compact, as GITHUB_OUTPUT takes it: one line, without its end."""
    return json.dumps(found, separators=(",", ":"))
