from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imgbuild.matrix import Matrix, load_matrix
from imgbuild.plan import Plan, make_plan
from imgbuild.project import Project

ROOT = Path(__file__).parents[1]


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
