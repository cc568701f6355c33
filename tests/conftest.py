from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imgbuild.matrix import Matrix, load_matrix
from imgbuild.plan import Plan, make_plan
from imgbuild.project import Project

ROOT = Path(__file__).parents[1]
# Where tests are skipped: the command that runs them, and where.
_COVERED_BY = {
    "tests/gpu": "make test-gpu TARGET=h100, on a machine with that GPU",
    "tests/image/test_image_gpu.py": "imgbuild test --target h100 --gpu on, on a machine with that GPU",
    "tests/image": "make image, then make test; IMGBUILD_IMAGE=REF names another image",
    "tests/dgls": "python tests/dgls/in_image.py comfyui:cpu",
    "tests/e2e": "make image, which brings an engine, then make test",
    "tests/unit/comfyrun": "imgbuild test, inside an image; IMGBUILD_COMFYUI_TREES, IMGBUILD_TORCH (CONTRIBUTING)",
}


# What a shell starts with `&` ignores SIGINT, and so do its children: then Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def matrix(root: Path) -> Matrix:
    """This project's own; frozen, so that all may have the same one."""
    return load_matrix(root / "images")


@pytest.fixture(scope="session")
def plans(root: Path, matrix: Matrix) -> dict[str, Plan]:
    """By target."""
    project = Project(root=root, writable=False)
    return {name: make_plan(project, matrix, target) for name, target in matrix.targets.items()}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of this project's data that a test may change."""
    for name in ("images", "kernels", "templates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nodes", tmp_path / "nodes")
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return Project(root=tmp_path, writable=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What a run did not cover, why, and the command that does."""
    if config.option.verbose < 0 or len(terminalreporter.stats.get("passed", ())) < 50:  # a few chosen tests
        return
    skipped: Counter[tuple[str, str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        path = report.nodeid.partition("::")[0]
        place = next((place for place in _COVERED_BY if path.startswith(place)), path)
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[place, reason.removeprefix("Skipped: "), _COVERED_BY.get(place, "")] += 1
    terminalreporter.section("not covered by this run")
    for (place, reason, command), count in sorted(skipped.items()):
        terminalreporter.write_line(f"{count:4} of {place}: {reason}" + (f"  → {command}" if command else ""))
