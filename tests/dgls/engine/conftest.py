"""The engine of nodes/dgls alone: torch, no GPU, no ComfyUI. Without torch each module is skipped and says so.

It is imported as `dgls_engine`, a name of no meaning, since ComfyUI gives the package a strange one too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

NODES = Path(os.environ.get("IMGBUILD_DGLS_NODES") or Path(__file__).parents[3] / "nodes")
ENGINE = NODES / "dgls" / "engine"
HAS_TORCH = importlib.util.find_spec("torch") is not None


class WithoutTorch(pytest.Module):
    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip(
            "torch is not installed here: run these with a Python that has it, PYTHON -m pytest tests/dgls/engine",
            allow_module_level=True,
        )


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if HAS_TORCH else WithoutTorch.from_parent(parent, path=module_path)


def load() -> None:
    spec = importlib.util.spec_from_file_location(
        "dgls_engine", ENGINE / "__init__.py", submodule_search_locations=[str(ENGINE)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


if HAS_TORCH:
    import torch

    # Two threads that wait for each other on a busy machine take seconds for what one does in no time.
    torch.set_num_threads(1)
    if "dgls_engine" not in sys.modules:
        load()


def pytest_configure(config: pytest.Config) -> None:
    # Also known where the project's pyproject.toml is not: in an image.
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
