from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imgbuild.project import Project

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of this project's data that a test may change."""
    for name in ("images", "kernels", "templates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nodes", tmp_path / "nodes")
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return Project(root=tmp_path, writable=True)
