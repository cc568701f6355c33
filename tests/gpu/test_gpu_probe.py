"""Our own kernel: code that was compiled for this image's GPU runs on the GPU at hand, and is right."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def probe(torch: Any) -> Any:
    return pytest.importorskip("imgbuild_probe", reason="imgbuild-probe is not installed here")


def test_the_probe_runs(probe: Any, capability: tuple[int, int]) -> None:
    found = probe.run()
    assert found["ok"], found
    assert found["actual"] == found["expected"]
    assert found["capability"] == f"{capability[0]}.{capability[1]}"


def test_its_result_depends_on_what_it_was_given(probe: Any) -> None:
    first, second = (probe.run(seed=seed) for seed in (1, 2))
    assert first["ok"]
    assert second["ok"]
    assert first["actual"] != second["actual"]


def test_a_gpu_that_is_not_there_is_an_error(torch: Any, probe: Any) -> None:
    with pytest.raises(probe.ProbeError):
        probe.run(device=torch.cuda.device_count())
