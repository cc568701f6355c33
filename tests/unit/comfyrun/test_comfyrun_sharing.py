"""How several ComfyUIs share a GPU. Recorded machines: no GPU was here."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from realimages import image, profile_json
from recorded import Recorded, recorded

import comfyrun
from comfyrun import fleet, sharing, worker
from comfyrun.errors import ConfigError
from comfyrun.preflight import driver
from comfyrun.preflight.gpus import Gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfyrun.layout import Layout

GIB = 1 << 30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-aaaa", capability="9.0", total=80 * GIB)
OTHER = dataclasses.replace(H100, uuid="GPU-bbbb")
SLICES = tuple(
    Gpu(name="NVIDIA H100 MIG 3g.40gb", uuid=f"MIG-{n}", capability="9.0", total=40 * GIB, mig=True)
    for n in (1, 2)
)


def plan(workers: int = 1, wanted: str = "", *gpus: Gpu, mps: bool = False, **environ: str) -> Any:
    return sharing.plan(workers, wanted, gpus, environ, mps=mps)


def test_one_worker_without_a_limit_has_the_gpu_to_itself() -> None:
    (share,) = plan(1, "", H100)
    assert (share.mechanism, share.environment) == ("none", {})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("70G", 70 * GIB),
        ("70GiB", 70 * GIB),
        ("512m", 512 << 20),
        ("90%", 72 * GIB),
        ("1t", 1 << 40),
        ("", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert sharing.limit(text, 80 * GIB) == size


@pytest.mark.parametrize("text", ["seventy", "0%", "101%", "70 gallons", "-5G", "5,5G"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="WORKER_GPU_MEMORY_LIMIT: "):
        plan(1, text, H100)


@pytest.mark.parametrize("text", ["0", "17", "two", "-1"])
def test_no_numbers_of_workers(text: str) -> None:
    with pytest.raises(ConfigError, match="NUM_WORKERS: "):
        worker.read({"NUM_WORKERS": text}, "x")


def test_the_documents_limit_leaves_its_headroom_cooperatively() -> None:
    (share,) = plan(1, "70G", H100)
    assert share.mechanism == "cooperative"
    assert share.environment == {"COMFY_RESERVE_VRAM": "10.0"}
    assert "nothing enforces it" in share.words


def test_what_somebody_has_set_stays() -> None:
    (share,) = plan(1, "70G", H100, COMFY_RESERVE_VRAM="4")
    assert share.environment == {}
    assert "COMFY_RESERVE_VRAM=4" in share.words


def test_several_on_one_gpu() -> None:
    first, second = plan(2, "", H100)
    assert first == second
    assert (first.bytes, first.environment) == (40 * GIB, {"COMFY_RESERVE_VRAM": "40.0"})
    shares = plan(3, "72G", H100)
    assert [s.environment for s in shares] == [{"COMFY_RESERVE_VRAM": "56.0"}] * 3


def test_mps_refuses_what_is_beyond() -> None:
    shares = plan(2, "70G", H100, mps=True)
    assert [s.environment for s in shares] == [{"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=35840M"}] * 2
    assert {s.mechanism for s in shares} == {"MPS"}


def test_a_slice_each() -> None:
    shares = plan(2, "", *SLICES, mps=True)
    assert [s.environment for s in shares] == [{"CUDA_VISIBLE_DEVICES": f"MIG-{n}"} for n in (1, 2)]
    assert {s.mechanism for s in shares} == {"MIG"}
    bounded = plan(2, "30G", *SLICES)
    assert bounded[0].environment == {"CUDA_VISIBLE_DEVICES": "MIG-1", "COMFY_RESERVE_VRAM": "10.0"}
    assert plan(1, "", *SLICES)[0].environment == {"CUDA_VISIBLE_DEVICES": "MIG-1"}
    with pytest.raises(ConfigError, match="NUM_WORKERS=3, and 2 MIG slices are visible"):
        plan(3, "", *SLICES)
    with pytest.raises(ConfigError, match="1 MIG slices"):
        plan(2, "", *SLICES, CUDA_VISIBLE_DEVICES="MIG-2")


def test_a_gpu_each() -> None:
    shares = plan(2, "", H100, OTHER)
    assert [s.environment for s in shares] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"},
        {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"},
    ]
    with pytest.raises(ConfigError, match="2 GPUs are visible"):
        plan(3, "", H100, OTHER)
    assert [s.mechanism for s in plan(2, "", H100, OTHER, CUDA_VISIBLE_DEVICES="1")] == ["cooperative"] * 2


def test_too_many_for_the_memory_and_none_at_all() -> None:
    with pytest.raises(ConfigError, match=r"1\.6 GiB of GPU memory for each of 16 workers"):
        plan(16, "25G", H100)
    assert [s.words for s in plan(2)] == ["nothing: there is no GPU here"] * 2
    unified = dataclasses.replace(H100, total=None)
    assert "does not say how much" in plan(2, "", unified)[0].words


# --- recorded machines -----------------------------------------------------------------------------


def _gpus(machine: Recorded) -> tuple[Gpu, ...]:
    answer, _ = driver.first((driver.Nvml(system=machine.system, environ={}),))
    assert answer
    return answer.gpus


@pytest.mark.parametrize(
    ("name", "workers", "mechanism"),
    [("h100", 2, "cooperative"), ("h100-mig", 2, "MIG"), ("two", 2, "GPUs"), ("rtx4090", 2, "cooperative")],
)
def test_recorded_machines(name: str, workers: int, mechanism: str) -> None:
    gpus = _gpus(recorded(name))
    if mechanism == "MIG" and sum(gpu.mig for gpu in gpus) < workers:
        workers = sum(gpu.mig for gpu in gpus)
    shares = sharing.plan(workers, "" if workers > 1 else "50%", gpus, {}, mps=False)
    if workers > 1:
        assert {s.mechanism for s in shares} == {mechanism}
    for share, gpu in zip(shares, gpus, strict=False):
        if mechanism in ("MIG", "GPUs") and workers > 1:
            assert share.environment["CUDA_VISIBLE_DEVICES"] == gpu.uuid


def test_check_says_what_bounds_them(
    tmp_path: Path, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    from comfyrun import cli

    (tmp_path / "profile.json").write_text(json.dumps(profile_json("h100")))
    (tmp_path / "flags.json").write_bytes(layout.flags.read_bytes())
    here = dataclasses.replace(layout, etc=tmp_path)
    environ = {
        "NUM_WORKERS": "2",
        "COMFY_DATA": str(tmp_path / "data"),
        "COMFY_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    cli.main(["check"], environ, here, recorded("h100").system)
    out = capsys.readouterr().out
    assert "worker 1 of 2: its GPU memory is bounded by ComfyUI itself" in out
    assert image("h100").target == "h100"


# --- the pairs of one container ----------------------------------------------------------------------


def test_each_pair_has_its_own_place() -> None:
    pairs = fleet.members(
        plan(2, "", *SLICES), {"REDIS_HOST": "queue"}, ["--fast"], worker="gpu7", port=8188, stop=12
    )
    assert [p.environment["WORKER_ID"] for p in pairs] == ["gpu7-1", "gpu7-2"]
    assert [p.environment["COMFY_PORT"] for p in pairs] == ["8188", "8189"]
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in pairs] == ["MIG-1", "MIG-2"]
    assert {p.environment["NUM_WORKERS"] for p in pairs} == {"1"}
    assert {p.environment["REDIS_HOST"] for p in pairs} == {"queue"}
    assert pairs[0].argv[-2:] == ("worker", "--fast")


PAIRS = f"""
import os, sys
sys.path.insert(0, {str(Path(comfyrun.__file__).parent.parent)!r})
from comfyrun import companion, fleet
from comfyrun.logs import Log
companion._FIRST, companion._LONGEST = 0.1, 0.4
agent, *folders = sys.argv[1:]
pairs = [companion.Companion(argv=(sys.executable, agent, *folder.split()), environment=dict(os.environ), drain=2,
         comfyui=0, name=f"w-{{n}}", what=f"worker w-{{n}}", goes_on="the others go on", hopeless=(2, 69))
         for n, folder in enumerate(folders, 1)]
sys.exit(fleet.run(pairs, Log()))
"""


@pytest.fixture
def fleets(tmp_path: Path) -> Any:
    running = []

    def start(*words: str) -> tuple[subprocess.Popen[bytes], list[Path], Path]:
        folders = [tmp_path / str(n) for n in range(len(words))]
        for folder in folders:
            folder.mkdir()
        agent = str(Path(__file__).with_name("fakeagent.py"))
        given = [f"{folder} {word}".strip() for folder, word in zip(folders, words, strict=True)]
        err = tmp_path / "err"
        with err.open("wb") as stream:
            process = subprocess.Popen([sys.executable, "-IS", "-c", PAIRS, agent, *given], stderr=stream)
        running.append(process)
        return process, folders, err

    yield start
    for process in running:
        process.kill()
        process.wait()


def _starts(folder: Path) -> list[int]:
    file = folder / "agent.log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [int(line.split()[1]) for line in lines if line.endswith(" start")]


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_that_dies_is_started_again_and_the_others_go_on(fleets: Any) -> None:
    process, (one, two), err = fleets("", "busy-0.2")
    _until(lambda: _starts(one) and _starts(two))
    os.kill(_starts(one)[0], signal.SIGKILL)
    _until(lambda: len(_starts(one)) == 2)
    assert len(_starts(two)) == 1
    assert "worker w-1 was ended by SIGKILL" in err.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "ended" in (two / "agent.log").read_text()


def test_one_that_cannot_run_ends_all(fleets: Any) -> None:
    process, (_, two), err = fleets("exit-69", "")
    assert process.wait(20) == 69
    assert "worker w-1 ended 3 times with exit code 69" in err.read_text()
    if _starts(two):
        assert "ended" in (two / "agent.log").read_text()
