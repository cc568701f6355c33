from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from recordedgpus import RECORDINGS, machine, seen

from imgbuild.doctor.probe import this_machine
from imgbuild.hardware import NVML, QUERY, SMI, look

NO_NVML = {"absent": "x"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gb10", [("NVIDIA GB10", "12.1", None, True, False)]),
        ("h100", [("NVIDIA H100 80GB HBM3", "9.0", 85520809984, False, False)]),
        ("h100-mig", [("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "9.0", 10468982784, False, True)]),
        ("l40s", [("NVIDIA L40S", "8.9", 48305799168, False, False)]),
        ("rtx4070", [("NVIDIA GeForce RTX 4070", "8.9", 12878610432, False, False)]),
        ("rtx4090", [("NVIDIA GeForce RTX 4090", "8.9", 25757220864, False, False)]),
        (
            "two",
            [
                ("NVIDIA GeForce RTX 3090", "8.6", 25769803776, False, False),
                ("NVIDIA GeForce RTX 4090", "8.9", 25757220864, False, False),
            ],
        ),
    ],
)
def test_nvml_is_asked_first(name, expected):
    found = machine(name)
    hardware = look(found.run)
    assert [(g.name, g.capability, g.memory, g.unified, g.mig) for g in hardware.gpus] == expected
    assert hardware.source == NVML
    assert hardware.problem is None
    assert hardware.driver.startswith("580.")
    assert hardware.cuda == (13, 0)
    assert found.asked == ["nvml"]


@pytest.mark.parametrize(
    ("name", "memory", "unified"), [("gb10", None, True), ("rtx4090", 24564 << 20, False)]
)
def test_without_nvml_nvidia_smi_says_the_same(name, memory, unified):
    by_nvml, by_smi = seen(name), seen(name, nvml=NO_NVML)
    assert by_smi.source == SMI
    assert by_smi.driver == by_nvml.driver
    assert [(g.name, g.uuid, g.capability) for g in by_smi.gpus] == [
        (g.name, g.uuid, g.capability) for g in by_nvml.gpus
    ]
    assert [(g.memory, g.unified) for g in by_smi.gpus] == [(memory, unified)]


def test_slices_of_nvidia_smi():
    hardware = seen("h100-mig", nvml=NO_NVML)
    assert [(g.name, g.uuid, g.mig, g.capability) for g in hardware.gpus] == [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "MIG-6a1b2c3d-1111-2222-3333-444455556666", True, "9.0")
    ]
    # No permission to see the memory is no unified memory.
    assert not hardware.gpus[0].unified


@pytest.mark.parametrize("replies", [{}, {"nvml": NO_NVML}])
def test_mig_mode_without_a_slice(replies):
    hardware = seen("h100-mig-unsliced", **replies)
    assert hardware.gpus == ()
    assert hardware.unsliced == ("NVIDIA H100 80GB HBM3",)


def test_a_driver_that_hangs_is_asked_once():
    found = machine("hanging")
    hardware = look(found.run)
    assert hardware.late
    assert hardware.problem == "the driver did not answer NVML within 20 s"
    assert found.asked == ["nvml"]


def test_nvml_crashes_and_nvidia_smi_hangs():
    hardware = seen("hanging-smi")
    assert hardware.late
    assert hardware.problem == "nvidia-smi did not end within 20 s"


def test_nvml_crashes_and_there_is_no_nvidia_smi():
    hardware = seen("hanging-smi", **{"nvidia-smi_gpus": NO_NVML})
    assert hardware.problem == "asking NVML ended with status -11"


def test_nvidia_smi_that_cannot_reach_the_driver():
    hardware = seen("garbage")
    assert hardware.gpus == ()
    assert hardware.problem.startswith("nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate")


def test_mismatch_after_an_update():
    assert (
        seen("mismatch").problem == "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"
    )


def test_no_driver_is_no_problem():
    hardware = seen("none")
    assert hardware.gpus == ()
    assert hardware.problem is None


def test_nvidia_smi_that_finds_no_devices():
    reply = {"returncode": 6, "stdout": "No devices were found\n"}
    hardware = seen("none", **{"nvidia-smi_gpus": reply})
    assert hardware.gpus == ()
    assert hardware.problem is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "null",
        "[" * 100_000,
        '{"gpus": [1, null, {}, {"uuid": "rm -rf /"}], "unsliced": 3, "driver": 7, "cuda": "x"}',
        '{"gpus": {"a": 1}, "cuda": -1, "driver": "580.1; reboot"}',
    ],
)
def test_whatever_nvml_says_it_is_an_answer(answer):
    hardware = seen("none", nvml={"stdout": answer})
    assert hardware.gpus == ()
    assert hardware.driver is None


def test_what_a_driver_says_is_one_printable_line():
    item = {"name": "NVIDIA\x1b[31m\nX", "uuid": "GPU-1234", "capability": "9.0 or so", "total": True}
    hardware = seen("none", nvml={"stdout": json.dumps({"gpus": [item]})})
    assert hardware.gpus[0].name == "NVIDIA [31m X"
    assert hardware.gpus[0].capability is None
    assert hardware.gpus[0].memory is None


@pytest.mark.parametrize("name", sorted(p.stem for p in RECORDINGS.glob("*.json")))
def test_as_json_is_json(name):
    json.dumps(seen(name).as_json())


# --- the child, against a stand-in for NVIDIA's library of the same calls ------------------------

FAKE = """
class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
class Memory: total = 10 << 30
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 4
def nvmlSystemGetDriverVersion(): return "580.95.05"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetHandleByIndex(index):
    if index == 3: raise NVMLError("GPU is lost")
    return index
def nvmlDeviceGetName(d): return {0: "NVIDIA GB10", 1: "NVIDIA H100", 2: "NVIDIA H200", "s": "NVIDIA H100 MIG 1g.10gb"}[d]
def nvmlDeviceGetUUID(d): return f"GPU-000{d}"
def nvmlDeviceGetCudaComputeCapability(d): return (12, 1) if d == 0 else (9, 0)
def nvmlDeviceGetMemoryInfo(d):
    if d == 0: raise NVMLError_NotSupported("Not Supported")
    return Memory
def nvmlDeviceGetMigMode(d):
    if d == 0: raise NVMLError_NotSupported("Not Supported")
    return (1, 1)
def nvmlDeviceGetMaxMigDeviceCount(d): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(d, i):
    if d == 2 or i: raise NVMLError("Not Found")
    return "s"
"""


def test_the_child_reads_nvml(tmp_path):
    (tmp_path / "pynvml.py").write_text(textwrap.dedent(FAKE))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", QUERY], env=env, capture_output=True, text=True, check=True)
    hardware = seen("none", nvml={"stdout": done.stdout})
    assert [(g.name, g.capability, g.memory, g.unified, g.mig) for g in hardware.gpus] == [
        ("NVIDIA GB10", "12.1", None, True, False),
        ("NVIDIA H100 MIG 1g.10gb", "9.0", 10 << 30, False, True),
    ]
    assert hardware.unsliced == ("NVIDIA H200",)
    assert hardware.problem == "GPU 3: GPU is lost"


def test_nvidias_own_library_knows_every_call():
    """The stand-in above is only as good as its names."""
    pynvml = pytest.importorskip("pynvml")
    for line in FAKE.splitlines():
        if line.startswith(("def ", "class NVML")):
            assert hasattr(pynvml, line.split()[1].partition("(")[0]), line


def test_this_machine_can_be_asked():
    hardware = look(this_machine(os.environ).run)
    assert hardware.gpus or hardware.problem or hardware.source is None
