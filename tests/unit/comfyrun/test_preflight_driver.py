"""The driver layer: what NVML, nvidia-smi and CUDA are asked, and that any answer at all is understood."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preflightkit import GIB, MIB, gpu
from recorded import Recorded, recorded, says

from comfyrun.preflight import driver, gpus, hostside, smi
from comfyrun.preflight.child import cuda as cuda_child
from comfyrun.preflight.child import nvml as nvml_child
from comfyrun.preflight.driver import CHILD, Cuda, Nvml, Smi
from comfyrun.preflight.gpus import Answer, complete, same
from comfyrun.preflight.system import run

if TYPE_CHECKING:
    from pathlib import Path

UUID = "GPU-44a1b2c3-1111-2222-3333-444455556664"


# --- NVML, asked through ctypes ---------------------------------------------------------------------


class FakeNvml:
    """A libnvidia-ml.so.1 of one GPU; a number in the place of an answer is an error of NVML's."""

    def __init__(self, **changes: Any) -> None:
        self.answers: dict[str, Any] = {
            "nvmlInit_v2": None,
            "nvmlDeviceGetCount_v2": 1,
            "nvmlSystemGetDriverVersion": b"580.82.07",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetHandleByIndex_v2": {0: 7, 1: 8},
            "nvmlDeviceGetName": {
                7: b"NVIDIA GeForce RTX 4090",
                8: b"NVIDIA B",
                9: b"NVIDIA H100 MIG 1g.10gb",
            },
            "nvmlDeviceGetUUID": {7: UUID.encode(), 8: b"GPU-b", 9: b"MIG-9"},
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMigMode": Failure(3),
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": {1: 9},
            "nvmlDeviceGetMemoryInfo": (24 * GIB, 23 * GIB, GIB),
            "nvmlDeviceGetDisplayActive": 1,
            "nvmlDeviceGetComputeRunningProcesses_v3": [(4711, 2 * GIB)],
            "nvmlDeviceGetGraphicsRunningProcesses_v3": [(1650, nvml_child.UNKNOWN)],
            "nvmlSystemGetProcessName": {4711: b"/usr/bin/python3", 1650: Failure(6)},
            **{f"nvml{name}": answer for name, answer in changes.items()},
        }
        self.nvmlErrorString = lambda code: f"error {code} in words".encode()

    def __getattr__(self, name: str) -> Any:
        if self.answers.get(name, Missing) is Missing:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            answer = self.answers[name]
            if isinstance(answer, dict):  # by index, by handle, by PID
                key = arguments[-2 if "ByIndex" in name else 0].value
                answer = answer.get(key, Failure(6))
            return self.give(answer, arguments)

        return function

    def give(self, answer: Any, arguments: tuple[Any, ...]) -> int:
        match answer:
            case Failure():
                return answer.code
            case None:
                return 0
            case bytes():
                buffer, length = arguments[-2:]
                assert len(answer) < length.value
                buffer.value = answer
            case int():
                arguments[-1]._obj.value = answer
            case (int(), int()):
                arguments[-2]._obj.value, arguments[-1]._obj.value = answer
            case (total, free, used):
                memory = arguments[-1]._obj
                memory.total, memory.free, memory.used = total, free, used
            case list():
                count, room = arguments[-2]._obj, arguments[-1]
                if len(answer) > count.value:
                    count.value = len(answer)
                    return nvml_child.TOO_SMALL
                for place, (pid, held) in zip(room, answer, strict=False):
                    place.pid, place.used = pid, held
                count.value = len(answer)
        return 0


class Missing:
    pass


class Failure:
    def __init__(self, code: int) -> None:
        self.code = code


def ask_nvml(**changes: Any) -> Answer:
    return gpus.read("NVML", json.dumps(nvml_child.Nvml(FakeNvml(**changes)).report()))


def test_nvml_one_gpu() -> None:
    answer = ask_nvml()
    assert (answer.driver, answer.cuda, answer.problem) == ("580.82.07", (13, 0), None)
    (found,) = answer.gpus
    assert (found.name, found.uuid, found.capability) == ("NVIDIA GeForce RTX 4090", UUID, "8.9")
    assert (found.total, found.free, found.display, found.mig) == (24 * GIB, 23 * GIB, True, False)
    assert [(h.pid, h.name, h.used) for h in found.holders] == [
        (4711, "python3", 2 * GIB),
        (1650, None, None),
    ]


def test_nvml_does_not_know_the_memory_of_a_gb10() -> None:
    (found,) = ask_nvml(DeviceGetMemoryInfo=Failure(3), DeviceGetDisplayActive=Failure(3)).gpus
    assert (found.total, found.free, found.display) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"Init_v2": Failure(18)}, "nvmlInit_v2: error 18 in words (18)"),
        ({"Init_v2": Missing}, "nvmlInit_v2 is missing"),
        ({"DeviceGetCount_v2": Failure(999)}, "nvmlDeviceGetCount_v2: error 999 in words (999)"),
        ({"DeviceGetUUID": Failure(15)}, "GPU 0: nvmlDeviceGetUUID: error 15 in words (15)"),
    ],
)
def test_nvml_fails(changes: dict[str, Any], problem: str) -> None:
    answer = ask_nvml(**changes)
    assert (answer.gpus, answer.problem) == ((), problem)


def test_nvml_has_no_words() -> None:
    library = FakeNvml(Init_v2=Failure(9))
    del library.nvmlErrorString
    answer = gpus.read("NVML", json.dumps(nvml_child.Nvml(library).report()))
    assert answer.problem == "nvmlInit_v2: error (9)"
    assert ask_nvml(SystemGetCudaDriverVersion_v2=Missing, SystemGetDriverVersion=Failure(1)).cuda is None


def test_a_process_is_named_and_its_arguments_are_not() -> None:
    assert gpus.program("/usr/bin/python3 main.py --token=hunter2") == "python3"
    assert gpus.program("[Not Found]") is None
    assert gpus.program(" ") is None
    assert gpus.program("/") is None


def test_nvml_one_gpu_of_two_is_lost() -> None:
    answer = ask_nvml(DeviceGetCount_v2=2, DeviceGetHandleByIndex_v2={0: 7})
    assert [g.uuid for g in answer.gpus] == [UUID]
    assert answer.problem is not None
    assert answer.problem.startswith("GPU 1: nvmlDeviceGetHandleByIndex_v2")


def test_nvml_slices() -> None:
    answer = ask_nvml(DeviceGetMigMode=(1, 1), DeviceGetUUID={7: UUID.encode(), 9: b"MIG-9abc"})
    (found,) = answer.gpus
    assert (found.name, found.uuid, found.mig) == ("NVIDIA H100 MIG 1g.10gb", "MIG-9abc", True)
    unsliced = ask_nvml(DeviceGetMigMode=(1, 1), DeviceGetMigDeviceHandleByIndex={})
    assert (unsliced.gpus, unsliced.unsliced) == ((), ("NVIDIA GeForce RTX 4090",))
    off = ask_nvml(DeviceGetMigMode=(0, 0))
    assert [g.mig for g in off.gpus] == [False]


def test_nvml_more_processes_than_expected() -> None:
    many = [(pid, MIB) for pid in range(100, 300)]
    names = {pid: b"x" for pid, _ in many}
    answer = ask_nvml(DeviceGetComputeRunningProcesses_v3=many, SystemGetProcessName=names)
    assert len(answer.gpus[0].holders) == 201
    without = ask_nvml(
        DeviceGetComputeRunningProcesses_v3=Missing, DeviceGetGraphicsRunningProcesses_v3=Failure(4)
    )
    assert without.gpus[0].holders == ()


def test_nvml_structures_have_the_layout_of_nvml_h() -> None:
    assert ctypes.sizeof(nvml_child.Memory) == 24
    assert ctypes.sizeof(nvml_child.Process) == 24
    assert nvml_child.Process.used.offset == 8


# --- CUDA, asked through ctypes ---------------------------------------------------------------------


class FakeCuda:
    """A libcuda.so.1 of two GPUs, the second of which has the first's UUID plus one."""

    def __init__(self, count: int = 2, fails: dict[str, int] | None = None, *, slices: bool = True) -> None:
        self.count, self.fails = count, fails or {}
        if slices:
            self.cuDeviceGetUuid_v2 = self.cuDeviceGetUuid

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu") or name == "cuDeviceGetUuid_v2":
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            if name in self.fails:
                return self.fails[name]
            self.give(name, arguments)
            return 0

        return function

    def give(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "cuDriverGetVersion":
                arguments[0]._obj.value = 13020
            case "cuDeviceGetCount":
                arguments[0]._obj.value = self.count
            case "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            case "cuDeviceGetName":
                arguments[0].value = b"NVIDIA GB10"
            case "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 12, 76: 1}[arguments[1]]
            case "cuDeviceTotalMem_v2":
                arguments[0]._obj.value = 128 * GIB
            case "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 48 * GIB, 128 * GIB
            case "cuGetErrorString":
                arguments[1]._obj.value = b"in words"

    def cuDeviceGetUuid(self, raw: Any, device: int) -> int:  # noqa: N802
        if "cuDeviceGetUuid" in self.fails:
            return self.fails["cuDeviceGetUuid"]
        raw[:] = [*range(15), 15 + device]
        return 0


def ask_cuda(*, free: bool = False, **options: Any) -> Answer:
    return gpus.read("CUDA", json.dumps(cuda_child.Cuda(FakeCuda(**options)).report(free=free)))


@pytest.mark.parametrize("slices", [True, False])
def test_cuda_in_its_own_order(slices: bool) -> None:
    answer = ask_cuda(slices=slices)
    assert (answer.cuda, answer.problem, answer.code) == ((13, 2), None, None)
    assert [g.uuid[-4:] for g in answer.gpus] == ["0e0f", "0e10"]
    assert answer.gpus[0].uuid == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert {(g.capability, g.total, g.free) for g in answer.gpus} == {("12.1", 128 * GIB, None)}


def test_cuda_free_memory_of_the_first() -> None:
    assert [g.free for g in ask_cuda(free=True).gpus] == [48 * GIB, None]


@pytest.mark.parametrize(
    ("fails", "code", "found"),
    [({"cuInit": 100}, 100, 0), ({"cuDevicePrimaryCtxRetain": 2}, 2, 1), ({"cuDeviceGetUuid": 999}, 999, 0)],
)
def test_cuda_fails(fails: dict[str, int], code: int, found: int) -> None:
    answer = ask_cuda(fails=fails, free=True)
    assert (answer.code, len(answer.gpus)) == (code, found)
    assert answer.cuda == (13, 2)
    assert answer.problem == f"{next(iter(fails)).replace('Uuid', 'Uuid_v2')}: in words ({code})"


def test_cuda_of_another_age_lacks_a_function() -> None:
    class Old:
        def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
            version._obj.value = 11040
            return 0

    answer = gpus.read("CUDA", json.dumps(cuda_child.Cuda(Old()).report(free=False)))
    assert (answer.problem, answer.cuda) == ("cuInit is missing", (11, 4))


# --- the children as programs -----------------------------------------------------------------------

NVML_C = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.82.07", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13000; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)0x7ffff0000010; return i; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) {
  if (d != (void *)0x7ffff0000010) return 2;
  strncpy(s, "NVIDIA Made Here", n); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { strncpy(s, "GPU-44a1b2c3", n); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = 12; *b = 1; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 25769803776; m[1] = 5; m[2] = 6; return 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *a, unsigned *b) { return 3; }
struct p { unsigned pid; unsigned long long used; unsigned a, b; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, struct p *p) {
  p[1].pid = 42; p[1].used = 4096; p[0].pid = 41; p[0].used = ~0ULL; *n = 2; return 0; }
const char *nvmlErrorString(int e) { return "it is broken"; }
"""


def child(script: str, *options: str, **environ: str) -> str:
    asked = run(
        sys.executable,
        "-ISB",
        str(CHILD / script),
        *options,
        environ={"PATH": "/nowhere", **environ},
        timeout=60,
    )
    assert asked.ok, asked
    return asked.stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler to make a library with")
def test_the_nvml_child_with_a_real_library(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML_C)
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        str(tmp_path / nvml_child.LIBRARY),
        str(tmp_path / "nvml.c"),
    ]
    subprocess.run(command, check=True)
    answer = gpus.read("NVML", child("nvml.py", LD_LIBRARY_PATH=str(tmp_path)))
    (found,) = answer.gpus
    assert (found.name, found.capability, found.total, found.free) == (
        "NVIDIA Made Here",
        "12.1",
        24 * GIB,
        5,
    )
    assert [(h.pid, h.used) for h in found.holders] == [(41, None), (42, 4096)]


@pytest.mark.parametrize("script", ["nvml.py", "cuda.py"])
def test_the_children_without_a_library(script: str) -> None:
    answer = gpus.read("x", child(script, "--free"))
    assert answer.gpus == ()
    assert answer.problem is not None
    assert ".so.1" in answer.problem


# --- nvidia-smi -------------------------------------------------------------------------------------

SMI = f"NVIDIA GeForce RTX 4090, {UUID}, 8.9, 24564, 24080, 580.82.07, [N/A], Disabled\n"


def test_smi() -> None:
    answer = smi.gpus(SMI)
    (found,) = answer.gpus
    assert answer.driver == "580.82.07"
    assert (found.uuid, found.capability, found.total, found.free) == (UUID, "8.9", 24564 * MIB, 24080 * MIB)
    assert found.display is False
    assert not found.mig


def test_smi_of_a_gb10() -> None:
    (found,) = smi.gpus(f"NVIDIA GB10, {UUID}, 12.1, [N/A], [N/A], 580.95.05, [N/A], Enabled\n").gpus
    assert (found.total, found.free, found.display) == (None, None, True)


def test_smi_slices() -> None:
    on = recorded("h100-mig", nvml={"absent": "no"})
    answer = Smi(system=on.system, environ={}).ask()
    (found,) = answer.gpus
    assert (found.mig, found.total, answer.unsliced) == (True, None, ())
    assert found.name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    empty = Smi(system=recorded("h100-mig-unsliced").system, environ={}).ask()
    assert (empty.gpus, empty.unsliced) == ((), ("NVIDIA H100 80GB HBM3",))


def test_smi_of_a_machine_with_both() -> None:
    sliced = SMI.replace(UUID, "GPU-0000").replace("[N/A], D", "Enabled, D")
    listing = "GPU 0: X (UUID: GPU-0000)\n  MIG 1g.10gb     Device  0: (UUID: MIG-1)\n  MIG 2g.20gb     Device  1: (UUID: MIG-2)\n"
    answer = smi.with_slices(smi.gpus(SMI + sliced), listing)
    assert [(g.uuid, g.mig) for g in answer.gpus] == [(UUID, False), ("MIG-1", True), ("MIG-2", True)]
    assert answer.unsliced == ()


def test_smi_holders() -> None:
    (found,) = Smi(system=recorded("smi-only").system, environ={}).ask().gpus
    assert [(h.pid, h.name, h.used) for h in found.holders] == [
        (4711, None, 2048 * MIB),
        (4712, "blender", None),
    ]
    (alone,) = (
        Smi(system=recorded("smi-only", **{"nvidia-smi holders": {"hangs": 1}}).system, environ={}).ask().gpus
    )
    assert alone.holders == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it says nothing"),
        ("No devices were found\n", "No devices were found"),
        ("\0\n\x1b[31mred", "[31mred"),
        ("a,b,c,d,e,f,g,h\n", "a,b,c,d,e,f,g,h"),
        ("x" * 200_000, "x" * 400),  # more than a cell may hold
    ],
)
def test_smi_says_something_else(text: str, problem: str) -> None:
    answer = smi.gpus(text)
    assert (answer.gpus, answer.problem) == ((), problem)


# --- one after the other ----------------------------------------------------------------------------


def layers(on: Recorded) -> tuple[Answer | None, tuple[Answer, ...]]:
    s = on.system
    return driver.first((Nvml(system=s, environ={}), Smi(system=s, environ={}), Cuda(system=s, environ={})))


def test_the_first_that_answers() -> None:
    on = recorded("rtx4090")
    answer, failed = layers(on)
    assert answer is not None
    assert (answer.source, failed, on.names) == ("NVML", (), ["nvml"])


def test_nvidia_smi_comes_second() -> None:
    on = recorded("smi-only")
    answer, (failed,) = layers(on)
    assert answer is not None
    assert answer.source == "nvidia-smi"
    assert failed.problem == "libnvidia-ml.so.1: cannot open shared object file: No such file or directory"
    assert on.names == ["nvml", "nvidia-smi gpus", "nvidia-smi holders"]


def test_cuda_comes_third() -> None:
    on = recorded("hanging-smi")
    answer, failed = layers(on)
    assert answer is not None
    assert answer.source == "CUDA"
    assert [f.problem for f in failed] == ["killed by SIGSEGV", "no answer in 20 s"]


def test_after_nvml_hangs_nvidia_smi_is_not_waited_for() -> None:
    on = recorded("hanging")
    answer, failed = layers(on)
    assert answer is None
    assert on.names == ["nvml", "cuda"]
    assert [f.late for f in failed] == [True, True]


def test_a_gpu_without_slices_is_not_asked_for_again() -> None:
    on = recorded("h100-mig-unsliced")
    assert layers(on)[0] is None
    assert on.names == ["nvml"]


def test_the_children_see_the_environment() -> None:
    on = recorded("compute-only")
    Cuda(system=on.system, environ={"CUDA_VISIBLE_DEVICES": "1"}, free=True).ask()
    assert on.environs == [{"CUDA_VISIBLE_DEVICES": "1"}]
    assert on.asked[0][-1] == "--free"


def test_what_one_lacks_another_knows() -> None:
    lacking = [gpu(None, total=None, free=None), gpu("8.6", uuid="GPU-ffff", total=None)]
    other = gpu("12.1", uuid="00000001-0000-0000-0000-000000000000", total=5, free=3)
    first, second = complete(lacking, [other])
    assert (first.capability, first.total, first.free, first.name) == ("12.1", 5, 3, lacking[0].name)
    assert second == lacking[1]
    assert complete([gpu(free=0)], [gpu(free=9)])[0].free == 0


def test_a_slice_is_the_same_whatever_stands_before_it() -> None:
    assert same("MIG-6A1B", "GPU-6a1b")
    assert not same("GPU-6a1b", "GPU-6a1c")


# --- the host's side --------------------------------------------------------------------------------


def test_what_the_kernel_module_says() -> None:
    assert hostside.look(recorded("none").system) == hostside.HostSide(driver=None, models=(), given=False)
    seen = hostside.look(recorded("not-given").system)
    assert (seen.driver, seen.models, seen.given) == ("580.82.07", ("NVIDIA GeForce RTX 4090",), False)
    assert hostside.look(recorded("gb10").system).driver == "580.95.05"
    assert hostside.look(recorded("two").system).models == (
        "NVIDIA GeForce RTX 3090",
        "NVIDIA GeForce RTX 4090",
    )
    assert hostside.look(recorded("garbage").system).driver is None


@pytest.mark.parametrize(
    ("devices", "given_one"),
    [(["nvidiactl"], True), (["dxg"], True), (["nvhost-ctrl"], True), (["nvidia-uvm"], False), ([], False)],
)
def test_whether_there_is_something_to_ask(devices: list[str], given_one: bool) -> None:
    on = recorded("none")
    on.devices = devices
    assert hostside.look(on.system).given is given_one


# --- anything at all --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = ("name", "uuid", "capability", "total", "free", "display", "mig", "holders", "pid", "used")
GPU_LIKE = st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from([UUID, "8.9", [{"pid": 3}], GIB]))
ANSWER_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "driver": JSON | st.just("580.1"),
        "cuda": JSON | st.just(13000),
        "gpus": JSON | st.lists(GPU_LIKE, max_size=3),
        "unsliced": JSON,
        "problem": JSON,
        "code": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), JSON.map(json.dumps), ANSWER_LIKE.map(json.dumps)))
def test_no_answer_is_too_strange(text: str) -> None:
    answer = gpus.read("x", text)
    for found in answer.gpus:
        assert str(found).isprintable()
        assert found.capability is None or float(found.capability) >= 0
        assert found.total is None or found.total > 0
    assert answer.problem is None or answer.problem.isprintable()


def test_a_very_deep_answer() -> None:
    assert gpus.read("x", "[" * 100_000).problem == "the answer cannot be understood"
    assert gpus.read("x", says({"cuda": 10**400})["stdout"]).cuda is None


SMI_CELL = st.sampled_from(
    ["NVIDIA X", UUID, "8.9", "24564", "[N/A]", "580.1", "Enabled", '"', "", "x" * 9000]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.lists(st.lists(SMI_CELL | st.text(max_size=5)).map(",".join)).map("\n".join)),
    st.text(),
)
def test_no_nvidia_smi_is_too_strange(text: str, other: str) -> None:
    answer = smi.with_holders(smi.with_slices(smi.gpus(text), other), other)
    assert all(str(found).isprintable() for found in answer.gpus)
    smi.with_holders(smi.gpus(SMI), text)
    smi.with_slices(Answer(source="x", gpus=(gpu(),), unsliced=(gpu().uuid,)), text)
