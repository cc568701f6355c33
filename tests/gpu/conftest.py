"""Tests of the compiled kernels, in whatever environment has them, torch and a GPU; see README.md.

They need nothing of the tool, so that they run inside an image. Anywhere else
each of them is skipped and says why.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from measures import Figures
from results import Results, worst

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = Path(__file__).parent
RESULTS = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    # Also known where the project's pyproject.toml is not.
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "xdist_group(name): pytest-xdist runs them in one worker")
    config.stash[RESULTS] = Results()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.xdist_group("gpu"))  # they share one GPU's memory
            item.add_marker(pytest.mark.filterwarnings("default"))  # of torch and Triton, which are not ours


@pytest.fixture(scope="session")
def torch(pytestconfig: pytest.Config) -> Any:
    """torch, with a CUDA device; else every test that asks for it is skipped."""
    # Only code that was compiled for this GPU may run: none that the driver makes of PTX at the first call.
    os.environ.setdefault("CUDA_DISABLE_PTX_JIT", "1")
    found = pytest.importorskip("torch", reason="torch is not installed here")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = found.cuda.is_available()
    if not usable:
        why = "; ".join(str(w.message).splitlines()[0] for w in caught) or "torch sees none"
        pytest.skip(f"no CUDA device: {why}")
    found.set_float32_matmul_precision("highest")  # the reference is fp32, not TF32
    pytestconfig.stash[RESULTS].describe(found)
    return found


@pytest.fixture(scope="session")
def capability(torch: Any) -> tuple[int, int]:
    major, minor = torch.cuda.get_device_capability(0)
    return int(major), int(minor)


@pytest.fixture
def figures(record_property: Any) -> Iterator[Figures]:
    """Collects what a test measures, for the results' file too when the test fails."""
    found = Figures()
    yield found
    record_property("figures", found.rows)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.config.stash[RESULTS].add(report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("IMGBUILD_GPU_RESULTS")
    results = session.config.stash.get(RESULTS, None)
    if path and results:
        results.write(Path(path))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The figures that acceptance notes quote."""
    for w in worst(config.stash[RESULTS].rows()):
        terminalreporter.write_line(
            "{kernel} {dtype}: {comparisons} comparisons, {wrong} wrong; max error {max_error:.4f}, "
            "{share:.0%} of what is allowed, cosine {cosine:.6f}".format(**w)
        )
