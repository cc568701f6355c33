"""The checks of everything around the GPU, and the probe kernel."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preflightkit import GIB
from recorded import recorded

from comfyrun.preflight import cudaerrors, folders, limits, memory, network, probe
from comfyrun.preflight.finding import Cause, Severity
from comfyrun.preflight.memory import HostMemory
from comfyrun.preflight.system import Asked, Space

if TYPE_CHECKING:
    from comfyrun.preflight.finding import Finding

MEMINFO = (
    "MemTotal:       65536000 kB\nMemAvailable:   32768000 kB\nSwapTotal: 1024 kB\nHugePages_Total:       0\n"
)


# --- memory -----------------------------------------------------------------------------------------


def look(**files: str) -> HostMemory:
    on = recorded("none")
    on.files = {name.replace("__", "/"): text for name, text in files.items()}
    return memory.look(on.system)


V2 = "__sys__fs__cgroup"
V1 = "__sys__fs__cgroup__memory"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        # Version 2, in a name space of the container's own.
        ({"__proc__self__cgroup": "0::/\n", f"{V2}__memory.max": "8589934592\n"}, 8 * GIB),
        ({"__proc__self__cgroup": "0::/\n", f"{V2}__memory.max": "max\n"}, None),
        # Version 2 without one: the lowest on the way counts.
        (
            {
                "__proc__self__cgroup": "0::/system.slice/docker-1.scope\n",
                f"{V2}__system.slice__memory.max": "4294967296\n",
                f"{V2}__system.slice__docker-1.scope__memory.max": "8589934592\n",
            },
            4 * GIB,
        ),
        # Version 1, whose "no limit" is a very large number; the path is the host's.
        (
            {
                "__proc__self__cgroup": "4:memory:/docker/1\n",
                f"{V1}__memory.limit_in_bytes": "9223372036854771712",
            },
            None,
        ),
        (
            {"__proc__self__cgroup": "5:cpu,memory:/x\n", f"{V1}__memory.limit_in_bytes": "2147483648\n"},
            2 * GIB,
        ),
        # Both, on a hybrid host.
        (
            {
                "__proc__self__cgroup": "4:memory:/\n0::/\n",
                f"{V2}__memory.max": "8589934592\n",
                f"{V1}__memory.limit_in_bytes": "4294967296\n",
            },
            4 * GIB,
        ),
        ({"__proc__self__cgroup": "nonsense\n::\n9:memory:/../../etc\n", f"{V2}__memory.max": "-5"}, None),
        ({"__proc__self__cgroup": "0::/\n", f"{V2}__memory.max": "0\n"}, None),
    ],
)
def test_limits_of_the_container(files: dict[str, str], limit: int | None) -> None:
    assert look(__proc__meminfo=MEMINFO, **files).limit == limit


def test_meminfo() -> None:
    found = look(__proc__meminfo=MEMINFO)
    assert (found.total, found.available, found.swap) == (65536000 << 10, 32768000 << 10, 1 << 20)
    assert look() == HostMemory(total=None, available=None, swap=0, limit=None)


@given(st.text(), st.text(), st.text())
def test_no_file_of_the_kernels_is_too_strange(meminfo: str, cgroup: str, limit: str) -> None:
    found = look(__proc__meminfo=meminfo, __proc__self__cgroup=cgroup, **{f"{V2}__memory.max": limit})
    memory.check(found, pins=True)


@pytest.mark.parametrize(
    ("total", "limit", "pins", "severity", "words"),
    [
        (64, None, True, Severity.OK, "64.0 GiB, 32.0 GiB available; the container has no limit of its own"),
        (None, None, True, Severity.INFO, "not known"),
        (64, 16, True, Severity.WARNING, "may use 16.0 GiB, the machine has 64.0 GiB; ComfyUI pins memory"),
        (64, 16, False, Severity.INFO, "this container may use 16.0 GiB, the machine has 64.0 GiB"),
        (64, 60, True, Severity.INFO, "this container may use 60.0 GiB"),  # 57.6 GiB are pinned at most
        (None, 16, True, Severity.WARNING, "the machine has an unknown amount; ComfyUI pins memory"),
    ],
)
def test_pinning_beside_a_limit(
    total: int | None, limit: int | None, pins: bool, severity: Severity, words: str
) -> None:
    host = HostMemory(
        total=total and total * GIB, available=total and 32 * GIB, swap=64 * GIB, limit=limit and limit * GIB
    )
    found = memory.check(host, pins=pins)
    assert found.severity is severity
    assert words in found.message
    if severity is Severity.WARNING:
        assert "--disable-pinned-memory" in found.remedy[0]


@pytest.mark.parametrize(
    ("ram", "swap", "gib"),
    [(8, 0, 3.2), (32, 0, 16), (32, 8, 24), (64, 0, 48), (64, 64, 57.6), (16, 64, 12)],
)
def test_how_much_comfyui_pins(ram: int, swap: int, gib: float) -> None:
    # As comfy/model_management.py of 0.33 computes it.
    host = HostMemory(total=ram * GIB, available=None, swap=swap * GIB, limit=None)
    assert memory.pinned(host) == int(gib * GIB)


# --- shared and locked memory -----------------------------------------------------------------------


def advice(shm: Space | None, locked: int | None) -> list[Finding]:
    on = recorded("none")
    if shm:
        on.spaces["/dev/shm"] = shm
    on.locked = locked
    system = on.system
    if shm is None:
        system = type(system)(**{**vars(system), "space": lambda _: None})
    return list(limits.check(system))


def test_advice_is_never_more() -> None:
    large, free = advice(Space(total=16 * GIB, free=1), None)
    assert (large.severity, free.severity) == (Severity.OK, Severity.OK)
    little, bound = advice(Space(total=64 << 20, free=1), 64 << 10)
    assert (little.severity, bound.severity) == (Severity.INFO, Severity.INFO)
    assert little.message == "/dev/shm has 64 MiB"
    assert "--shm-size 16g" in little.remedy[0]
    assert "--ulimit memlock=-1" in bound.remedy[0]
    unknown, _ = advice(None, None)
    assert unknown.message == "/dev/shm cannot be looked at"


# --- the network ------------------------------------------------------------------------------------


def net(listen: tuple[str, ...], **interfaces: tuple[str, ...]) -> Finding:
    on = recorded("none")
    on.folders = {"/sys/class/net": tuple(interfaces)}
    for name, inside in interfaces.items():
        on.folders |= {f"/sys/class/net/{name}/{entry}": ("x",) for entry in inside}
    return network.check(on.system, listen)


EVERYWHERE = ("0.0.0.0",)


def test_a_network_of_its_own() -> None:
    assert net(EVERYWHERE, lo=(), eth0=("address",)).severity is Severity.OK
    assert net(EVERYWHERE).severity is Severity.OK


@pytest.mark.parametrize("interfaces", [{"enp1s0": ("device",)}, {"docker0": ("bridge",)}])
@pytest.mark.parametrize("listen", [EVERYWHERE, ("::",), ("127.0.0.1", "192.168.1.5"), ("myhost",)])
def test_the_hosts_network(interfaces: dict[str, tuple[str, ...]], listen: tuple[str, ...]) -> None:
    found = net(listen, lo=(), **interfaces)
    assert found.severity is Severity.WARNING
    assert "--network host" in found.message
    assert f"listens on {listen[-1]}: whoever reaches it runs code on this machine" in found.message
    assert "COMFY_LISTEN=127.0.0.1" in found.remedy[0]


@pytest.mark.parametrize("listen", [("127.0.0.1",), ("::1", "localhost"), ("127.8.9.1",)])
def test_loopback_on_the_hosts_network(listen: tuple[str, ...]) -> None:
    assert net(listen, enp1s0=("device",)).severity is Severity.OK


# --- folders ----------------------------------------------------------------------------------------

OVERLAY = "21 1 0:31 / / rw,relatime - overlay overlay rw,lowerdir=/a\n"
VOLUME = "30 21 8:1 /v/_data /data rw,relatime master:1 - ext4 /dev/sda1 rw\n"
SPACED = "31 21 8:1 /v /srv/my\\040models ro - nfs4 nas:/models ro\n"


def check_folders(**changes: Any) -> list[Finding]:
    on = recorded("none")
    on.files[folders.MOUNTS] = OVERLAY + VOLUME + "30 21 8:1 /v /cache rw - ext4 /dev/sda1 rw\n"
    on.exec_allowed = changes.pop("exec_allowed", True)
    on.spaces |= changes.pop("spaces", {})
    on.unwritable |= changes.pop("unwritable", {})
    places = {"data": "/data", "cache": "/cache", "compiled": "/cache/t", "temp": "/tmp", "troubles": ()}
    return list(folders.check(on.system, **{**places, **changes}))


def test_all_volumes_are_well() -> None:
    found = check_folders()
    assert [f.check for f in found] == ["data", "cache", "exec", "temp"]
    assert {f.severity for f in found} == {Severity.OK}
    assert found[0].message == "/data is writable; 200.0 GiB free"


def test_troubles_are_errors_with_their_remedy() -> None:
    found, _ = check_folders(
        troubles=["UID 5 may not write to /data; on the host: chown -R 5:5 X; or --user 0:0"]
    )
    assert found.cause is Cause.MACHINE
    assert found.message == "UID 5 may not write to /data"
    assert found.remedy == ("on the host: chown -R 5:5 X; or --user 0:0",)
    assert found.line.endswith("/data; on the host: chown -R 5:5 X; or --user 0:0")
    plain, _ = check_folders(troubles=["/data is full"])
    assert plain.remedy == ()


def test_what_is_written_goes_with_the_container() -> None:
    found = check_folders(data="/srv/comfy")[0]
    assert found.severity is Severity.WARNING
    assert "/srv/comfy is in the container's own layer" in found.message
    assert found.remedy == ("mount a volume there: --volume comfy-data:/srv/comfy",)


def test_a_disk_that_is_nearly_full() -> None:
    found = check_folders(spaces={"/data": Space(total=GIB, free=5 << 20)})[0]
    assert (found.severity, found.message) == (Severity.WARNING, "/data is writable; 5 MiB free")


@pytest.mark.parametrize(
    ("allowed", "severity"), [(False, Severity.WARNING), (None, Severity.INFO), (True, Severity.OK)]
)
def test_a_cache_that_allows_no_execution(allowed: bool | None, severity: Severity) -> None:
    found = next(f for f in check_folders(exec_allowed=allowed) if f.check == "exec")
    assert found.severity is severity
    if allowed is False:
        assert "--tmpfs /cache:exec" in found.remedy[0]
    assert "exec" not in [f.check for f in check_folders(exec_allowed=allowed, compiled=None)]


def test_no_temporary_files() -> None:
    found = check_folders(unwritable={"/tmp": OSError(errno.EROFS, os.strerror(errno.EROFS))})[-1]
    assert found.severity is Severity.WARNING
    assert "/tmp cannot be written to by UID" in found.message
    assert "Read-only file system" in found.message
    assert found.remedy == ("--tmpfs /tmp:exec",)
    assert folders.temporary({}) == "/tmp"
    assert folders.temporary({"TMPDIR": "", "TMP": "/x"}) == "/x"


def test_mounts() -> None:
    text = (
        OVERLAY + VOLUME + SPACED + "32 30 8:1 / /data rw - xfs /dev/sdb rw\nbroken - line\n1 2 3 4 /x rw -\n"
    )
    mounts = list(folders.read_mounts(text))
    assert [(m.point, m.kind) for m in mounts] == [
        ("/", "overlay"),
        ("/data", "ext4"),
        ("/srv/my models", "nfs4"),
        ("/data", "xfs"),
    ]
    for path, kind in (
        ("/data/models", "xfs"),
        ("/database", "overlay"),
        ("/srv/my models", "nfs4"),
        ("/", "overlay"),
    ):
        found = folders.mount_of(path, mounts)
        assert found is not None
        assert found.kind == kind
    assert folders.mount_of("/x", []) is None


@given(st.text())
def test_no_table_of_mounts_is_too_strange(text: str) -> None:
    folders.mount_of("/data", list(folders.read_mounts(text)))


def test_shared_storage_is_never_replaced_by_an_empty_folder() -> None:
    on = recorded("none")
    on.folders |= {"/mnt/full": ("checkpoints",), "/mnt/empty": ()}
    on.files["/mnt/paths.yaml"] = ""
    system = type(on.system)(**{**vars(on.system), "exists": lambda path: path != "/mnt/nas"})
    full, file, empty, absent = folders.shared(
        system, ["/mnt/full", "/mnt/paths.yaml", "/mnt/empty", "/mnt/nas"], "COMFY_MODELS", strict=False
    )
    assert (full.severity, file.severity) == (Severity.OK, Severity.OK)
    assert empty.severity is Severity.WARNING
    assert "An engine makes an empty folder of a source that is missing" in empty.remedy[0]
    assert absent.cause is Cause.MACHINE
    assert "/mnt/nas is not there, and COMFY_MODELS names it" in absent.message
    (strictly,) = folders.shared(system, ["/mnt/empty"], "MODEL_BASE_PATH", strict=True)
    assert strictly.cause is Cause.MACHINE
    assert "/mnt/empty (MODEL_BASE_PATH) is empty" in strictly.message


# --- the probe kernel -------------------------------------------------------------------------------


def ended(value: object, returncode: int = 0, stderr: str = "") -> Asked:
    text = value if isinstance(value, str) else json.dumps(value)
    return Asked(outcome="ended", returncode=returncode, stdout=text, stderr=stderr, seconds=0.31)


def test_the_probe_is_right() -> None:
    found = probe.judge(ended({"ok": True, "capability": "8.9", "expected": 1, "actual": 1}))
    assert (found.severity, found.message) == (Severity.OK, "compiled code runs and computes right (0.31 s)")


@pytest.mark.parametrize(
    ("code", "cause", "remedy"),
    [
        (35, Cause.HARDWARE, "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        (100, Cause.HARDWARE, "--gpus all"),
        (209, Cause.HARDWARE, "use the image with the tag of its target"),
        (2, Cause.MACHINE, "the GPU's memory is full"),
        (802, Cause.HARDWARE, "nvidia-fabricmanager"),
        (803, Cause.HARDWARE, "nvidia-ctk cdi generate"),
        (999, Cause.HARDWARE, "nvidia-modprobe"),
        (12345, Cause.HARDWARE, "dmesg"),
    ],
)
def test_cuda_refuses_the_probe(code: int, cause: Cause, remedy: str) -> None:
    found = probe.judge(ended({"ok": False, "error": "in words", "code": code}, 1))
    assert found.message == f"CUDA refuses the probe kernel: in words (error {code})"
    assert found.cause is cause
    assert remedy in found.remedy[0]


@pytest.mark.parametrize(
    ("asked", "cause", "words"),
    [
        (
            ended({"ok": False, "actual": 1, "expected": 2}, 1),
            Cause.HARDWARE,
            "computes wrongly: 1 instead of 2",
        ),
        (ended("", -11), Cause.HARDWARE, "the probe kernel fails: killed by SIGSEGV"),
        (
            ended("", 1, "x\nModuleNotFoundError: no"),
            Cause.HARDWARE,
            "fails: exit code 1: ModuleNotFoundError: no",
        ),
        (ended("<html>"), Cause.HARDWARE, "its answer cannot be understood"),
        (ended("[" * 100_000), Cause.HARDWARE, "its answer cannot be understood"),
        (ended({"ok": False}), Cause.HARDWARE, "its answer cannot be understood"),
        (Asked(outcome="late", seconds=60), Cause.HARDWARE, "the probe kernel hangs: no answer in 60 s"),
        (
            Asked(outcome="absent", stderr="No such file"),
            Cause.MACHINE,
            "the probe kernel is not there: cannot be started: No such file",
        ),
    ],
)
def test_the_probe_fails(asked: Asked, cause: Cause, words: str) -> None:
    found = probe.judge(asked)
    assert found.cause is cause
    assert words in found.message
    assert found.remedy


@given(st.text(), st.text(), st.integers(-200, 200))
def test_no_probe_is_too_strange(out: str, err: str, code: int) -> None:
    assert probe.judge(Asked(outcome="ended", returncode=code, stdout=out, stderr=err)).message


def test_every_remedy_is_a_sentence() -> None:
    assert all(len(text) > 20 for text in cudaerrors.REMEDIES.values())
    assert cudaerrors.remedy(None).startswith("on the host")
