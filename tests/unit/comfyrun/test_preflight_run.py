"""Preflight as a whole, on recorded machines: `comfyrun check`, and before `comfyrun serve`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preflightkit import fly, image_of
from realimages import image, profile_json, table
from recorded import NAMES, Recorded, recorded, says

import comfyrun
from comfyrun import cli, errors, flagtable, process
from comfyrun.layout import Layout
from comfyrun.preflight import report
from comfyrun.preflight.finding import Severity
from comfyrun.preflight.run import CHECK, SERVE
from comfyrun.preflight.system import Space, this_machine

PACKAGE = Path(comfyrun.__file__).parent / "preflight"

# --- every recorded machine -------------------------------------------------------------------------

# Machine → the image it fits, its exit code, and a piece of each line that is no "ok".
MACHINES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "gb10": ("gb10", 0, ()),
    "h100": ("h100", 0, ()),
    "h100-mig": ("h100", 0, ()),
    "rtx4070": ("ada", 0, ()),
    "rtx4090": ("ada", 0, ()),
    "l40s": ("ada", 0, ("9.0 GiB of 45.0 GiB free; held by PID 90210 (python3, 35.0 GiB)",)),
    "two": ("ada", 0, ("left out, since the image is not built for them: NVIDIA GeForce RTX 3090 (8.6)",)),
    "smi-only": ("ada", 0, ()),
    "hanging-smi": ("ada", 0, ("24.0 GiB; how much of it is free, the driver does not say",)),
    "compute-only": ("ada", 0, ("24.0 GiB; how much of it is free, the driver does not say",)),
    "none": ("ada", 76, ("no GPU in this container, and no sign of NVIDIA's driver on this machine",)),
    "not-given": ("ada", 76, ("no GPU in this container, though the machine has NVIDIA's driver 580.82.07",)),
    "old-driver": ("ada", 76, ("driver 570.133.20 speaks CUDA 12.8, and the image needs 13.0",)),
    "hanging": ("ada", 76, ("the driver shows no GPU (NVML: no answer in 20 s; CUDA: no answer in 30 s)",)),
    "garbage": ("ada", 76, ("the driver shows no GPU (NVML: the answer cannot be understood;",)),
    "mismatch": ("ada", 76, ("Driver/library version mismatch (18)",)),
    "h100-mig-unsliced": ("h100", 76, ("is in MIG mode, and this container has no slice of it",)),
}


def test_every_recording_is_flown() -> None:
    assert sorted(MACHINES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_machine(name: str, tmp_path: Path) -> None:
    target, code, pieces = MACHINES[name]
    launch, found = fly(image(target), table(), recorded(name), tmp_path, depth=SERVE)
    assert found.exit_code == code, report.as_text(found)
    told = [f for f in found.findings if f.severity is not Severity.OK]
    assert len(told) == len(pieces), report.as_text(found)
    for finding, piece in zip(told, pieces, strict=True):
        assert piece in finding.message
    if code:
        assert all(f.remedy for f in found.errors)
        assert list(tmp_path.iterdir()) == [], "on the wrong hardware nothing is made"
    else:
        assert launch.attention == "sage"


def test_ada_image_on_a_12_gb_card(tmp_path: Path) -> None:
    """Acceptance 5: the tier that fits, with what a card with a monitor gets."""
    launch, found = fly(image("ada"), table(), recorded("rtx4070"), tmp_path, depth=SERVE)
    assert (launch.tier, found.exit_code) == ("12gb", 0)
    assert found.gib == pytest.approx(11.99, abs=0.01)
    assert list(launch.argv[launch.argv.index("--reserve-vram") :][:2]) == ["--reserve-vram", "1"]
    assert fly(image("ada"), table(), recorded("rtx4090"), tmp_path)[0].tier == "24gb"
    assert fly(image("ada"), table(), recorded("l40s"), tmp_path)[0].tier == "48gb"


def test_gb10_image_on_a_4090(tmp_path: Path) -> None:
    """Acceptance 5: the tag that fits."""
    _, found = fly(image("gb10"), table(), recorded("rtx4090"), tmp_path, depth=SERVE)
    assert found.exit_code == 76
    assert str(found.failure) == (
        "this image (gb10) is built for compute capability 12.1; found: NVIDIA GeForce RTX 4090 (8.9); "
        "use comfyui:0.33.0-cu130-ada (target ada, linux/amd64); or, slowly, without the GPU: serve --cpu"
    )


def test_a_gb10_has_one_pool(tmp_path: Path) -> None:
    on = recorded("gb10")
    _, found = fly(image("gb10"), table(), on, tmp_path, depth=SERVE)
    assert on.names == ["nvml", "cuda", "probe", "attention sage"]
    assert on.asked[1][-1] == "--free"
    (line,) = [f for f in found.findings if f.check == "vram"]
    assert line.message == (
        "one pool of 119.7 GiB for CPU and GPU: 117.0 GiB available (MemAvailable); CUDA counts 48.0 GiB as free; "
        "held by PID 2801 (Xorg, 18 MiB), PID 3020 (gnome-shell, 6 MiB)"
    )


def test_a_gb10_by_nvidia_smi(tmp_path: Path) -> None:
    on = recorded("gb10", nvml={"absent": "no"})
    _, found = fly(image("gb10"), table(), on, tmp_path, depth=SERVE)
    assert on.names[:4] == ["nvml", "nvidia-smi gpus", "nvidia-smi holders", "cuda"]
    assert found.exit_code == 0
    assert found.gib == pytest.approx(119.7, abs=0.01)


def test_a_lost_gpu_beside_the_one_that_is_used(tmp_path: Path) -> None:
    answer = json.loads(recorded("rtx4090").programs["nvml"]["stdout"])
    on = recorded("rtx4090", nvml=says({**answer, "problem": "GPU 1: GPU is lost (15)"}))
    _, found = fly(image("ada"), table(), on, tmp_path, depth=SERVE)
    assert found.notes == ("NVML: GPU 1: GPU is lost (15)",)


# --- several GPUs, and who chooses ------------------------------------------------------------------


def test_the_one_that_fits_is_given_by_its_uuid(tmp_path: Path) -> None:
    launch, found = fly(image("ada"), table(), recorded("two"), tmp_path, depth=SERVE)
    assert found.visible == "GPU-44a1b2c3-1111-2222-3333-444455556664"
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == found.visible


@pytest.mark.parametrize(("how", "what"), [("CUDA_VISIBLE_DEVICES", None), (None, "--cuda-device")])
def test_numbers_are_cudas(tmp_path: Path, how: str | None, what: str | None) -> None:
    """The 4090 is second on the bus, and first for CUDA, which was asked with the same variable."""
    on = recorded("two")
    arguments = (what, "0") if what else ()
    launch, found = fly(
        image("ada"), table(), on, tmp_path, *arguments, env={how: "0"} if how else {}, depth=SERVE
    )
    assert found.exit_code == 0
    assert on.names == ["nvml", "cuda", "probe", "attention sage"]
    assert {environ["CUDA_VISIBLE_DEVICES"] for environ in on.environs} == {"0"}
    assert found.visible is None
    assert launch.environment.get("CUDA_VISIBLE_DEVICES") == ("0" if how else None)


def test_the_other_one_was_named(tmp_path: Path) -> None:
    cards = json.loads(recorded("two").programs["cuda"]["stdout"])
    on = recorded("two", cuda=says({**cards, "gpus": cards["gpus"][1:]}))
    _, found = fly(image("ada"), table(), on, tmp_path, env={"CUDA_VISIBLE_DEVICES": "1"}, depth=SERVE)
    assert found.exit_code == 76
    assert "found: NVIDIA GeForce RTX 3090 (8.6)" in str(found.failure)


# --- without a GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "arguments"), [("cpu", ()), ("ada", ("--cpu",)), ("gb10", ("--cpu",))])
def test_the_cpu(tmp_path: Path, target: str, arguments: tuple[str, ...]) -> None:
    on = recorded("rtx4090")
    _, found = fly(image(target), table(), on, tmp_path, *arguments, depth=SERVE)
    assert (on.asked, found.exit_code, found.device) == ([], 0, None)
    assert found.findings[0].check == "device"
    assert found.findings[0].message.startswith("the CPU")
    assert "exec" not in [f.check for f in found.findings]
    assert (tmp_path / "data" / "models").is_dir()


# --- volumes ----------------------------------------------------------------------------------------


def test_a_volume_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    _, found = fly(image("ada"), table(), recorded("rtx4090"), tmp_path, depth=SERVE)
    assert found.exit_code == 69
    assert "is a file, and a directory is needed" in str(found.failure)


def test_the_wrong_hardware_comes_before_all_else(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    _, found = fly(image("ada"), table(), recorded("none"), tmp_path, depth=CHECK)
    assert found.exit_code == 76
    assert len(found.errors) >= 2


def test_shared_storage_that_is_not_mounted(tmp_path: Path) -> None:
    on = recorded("rtx4090")
    _, found = fly(image("ada"), table(), on, tmp_path, env={"COMFY_MODELS": f"{tmp_path}/nas"}, depth=SERVE)
    assert found.exit_code == 69
    assert "COMFY_MODELS names it: the storage is not mounted" in str(found.failure)
    assert not (tmp_path / "nas").exists()
    assert list(tmp_path.iterdir()) == []


# --- the report -------------------------------------------------------------------------------------


def test_as_text(tmp_path: Path) -> None:
    on = recorded("l40s", **{"attention sage": {"returncode": -11}})
    on.spaces["/dev/shm"] = Space(total=64 << 20, free=64 << 20)
    _, found = fly(image_of("ada"), table(), on, tmp_path, depth=CHECK)
    shown = report.as_text(found)
    lines = shown.splitlines()
    assert lines[0] == (
        "ok       device                NVIDIA L40S (8.9), GPU-55a1b2c3-1111-2222-3333-444455556665"
    )
    at = lines.index(
        "warning  kernel sageattention  sageattention is dropped, plain attention (SDPA) takes its place: "
        "it crashes: killed by SIGSEGV"
    )
    assert lines[at + 1].strip() == "→ COMFY_STRICT=1 makes this an error"
    assert any(line.startswith("info     shm ") for line in lines)
    assert lines[-1].startswith("ada: it can start, with 2 warnings; checked in ")
    assert "sk-secret" not in shown


def test_as_json(tmp_path: Path) -> None:
    on = recorded("rtx4070", **{"attention sage": {"returncode": -11}})
    _, found = fly(image_of("ada"), table(), on, tmp_path, depth=SERVE)
    shown = json.loads(report.as_json(found))
    assert (shown["schema"], shown["target"], shown["ok"], shown["exit_code"]) == (1, "ada", True, 0)
    assert shown["device"]["compute_capability"] == "8.9"
    assert shown["device"]["display"] is True
    assert shown["device"]["holders"][0] == {"pid": 1650, "name": "Xorg", "used": 640 << 20}
    assert shown["dropped"] == {"sageattention": "it crashes: killed by SIGSEGV"}
    assert shown["memory"]["limit"] is None
    kinds = {f["check"]: f["severity"] for f in shown["findings"]}
    assert kinds["kernel sageattention"] == "warning"
    assert {
        "device",
        "driver",
        "vram",
        "data",
        "cache",
        "temp",
        "memory",
        "network",
        "shm",
        "memlock",
    } <= set(kinds)
    _, bad = fly(image_of("gb10"), table(), recorded("none"), tmp_path)
    shown = json.loads(report.as_json(bad))
    assert (shown["ok"], shown["exit_code"], shown["device"]) == (False, 76, None)
    assert shown["findings"][0]["cause"] == "hardware"


# --- the verbs --------------------------------------------------------------------------------------


@pytest.fixture
def baked(tmp_path: Path) -> Layout:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "profile.json").write_text(json.dumps(profile_json("ada")))
    (etc / "flags.json").write_text(json.dumps(flagtable.to_json(table())))
    return Layout(etc=etc)


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {
        "COMFY_DATA": f"{tmp_path}/data",
        "COMFY_CACHE": f"{tmp_path}/cache",
        "COMFY_LISTEN": "127.0.0.1",
        "COMFY_PORT": "0",
        "HOME": str(tmp_path),
    }


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def run(argv: Any, environment: Any, *_: Any) -> int:
        calls.append((argv, environment))
        return 0

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(os, "chdir", lambda _path: None)
    monkeypatch.setattr("comfyrun.port.check", lambda *_: None)
    return calls


def test_check(baked: Layout, here: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    here["COMFY_PORT"] = "8188"
    assert cli.main(["check"], here, baked, recorded("rtx4070").system) == 0
    assert "ada: it can start" in capsys.readouterr().out
    assert cli.main(["check", "--json"], here, baked, recorded("gb10").system) == 76
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 76
    assert err == ""
    assert cli.main(["check", "--cpu"], here, baked, recorded("none").system) == 0
    assert "the CPU (--cpu)" in capsys.readouterr().out
    assert cli.main(["check", "--help"], here, baked) == 0
    assert "comfyrun check [--json]" in capsys.readouterr().out
    assert cli.main(["check", "--no-such-flag"], here, baked, recorded("none").system) == 2


def test_a_secret_is_not_shown(
    baked: Layout, here: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    here |= {"COMFY_PORT": "8188", "HF_TOKEN": "hf_0123456789abcdef", "API_KEY": "supersecret"}
    on = recorded("rtx4070", **{"attention sage": {"returncode": 1, "stderr": "token supersecret refused"}})
    for form in ([], ["--json"]):
        cli.main(["check", *form], here, baked, on.system)
        shown = capsys.readouterr().out
        assert "***" in shown
        assert "supersecret" not in shown
    cli.main(["serve"], {**here, "COMFY_STRICT": "1"}, baked, on.system)
    assert "supersecret" not in capsys.readouterr().err


def test_serve(
    baked: Layout, here: dict[str, str], started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    here["COMFY_PORT"] = "8188"
    on = recorded("two", **{"attention sage": {"hangs": 180}})
    assert cli.main([], here, baked, on.system) == 0
    argv, environment = started[0]
    assert environment["CUDA_VISIBLE_DEVICES"].startswith("GPU-44a1b2c3")
    assert "--use-sage-attention" not in argv
    said = capsys.readouterr().err
    assert said.count("sageattention") == 1
    assert "it hangs: no answer in 180 s" in said


def test_serve_warns(
    baked: Layout, here: dict[str, str], started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    here |= {"COMFY_PORT": "8188", "COMFY_LISTEN": "0.0.0.0"}
    on = recorded("l40s")
    on.folders = {"/sys/class/net": ("enp1s0", "lo"), "/sys/class/net/enp1s0/device": ("x",)}
    assert cli.main([], here, baked, on.system) == 0
    said = capsys.readouterr().err
    assert "held by PID 90210" in said
    assert "whoever reaches it runs code on this machine" in said
    assert "memlock" not in said, "advice is for check"


def test_serve_refuses(
    baked: Layout, here: dict[str, str], started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    here["COMFY_PORT"] = "8188"
    assert cli.main([], here, baked, recorded("gb10").system) == 76
    assert "use comfyui:0.33.0-cu130-gb10 (target gb10, linux/arm64)" in capsys.readouterr().err
    sage = {"attention sage": {"returncode": -11}}
    assert cli.main([], {**here, "COMFY_STRICT": "1"}, baked, recorded("rtx4090", **sage).system) == 77
    assert started == []


def test_print_starts_nothing_and_knows_the_tier(
    baked: Layout, here: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here["COMFY_PORT"] = "8188"
    on = recorded("rtx4070")
    assert cli.main(["--print"], here, baked, on.system) == 0
    assert "12gb" in capsys.readouterr().out
    assert on.names == ["nvml"]
    assert not (tmp_path / "data").exists()
    assert cli.main(["--print", "--json"], here, baked, recorded("none").system) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


# --- whatever the driver answers --------------------------------------------------------------------

TEXT = st.text(max_size=60)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from(["8.9", "GPU-1234", "agrees"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("gpus", "uuid", "capability", "total", "free", "ok", "code", "error", "outcome", "schema")
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)
REPLY = st.one_of(
    st.fixed_dictionaries(
        {"stdout": TEXT | VALUE.map(json.dumps)},
        optional={"returncode": st.integers(-70, 255), "stderr": TEXT},
    ),
    st.just({"hangs": 1}),
    st.just({"absent": "No such file or directory"}),
)
PROGRAMS = (
    "nvml",
    "cuda",
    "nvidia-smi gpus",
    "nvidia-smi list",
    "nvidia-smi holders",
    "probe",
    "attention sage",
)
FILES = ("/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/driver/nvidia/version")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(NAMES),
    programs=st.dictionaries(st.sampled_from(PROGRAMS), REPLY),
    files=st.dictionaries(st.sampled_from(FILES), TEXT),
    visible=st.none() | TEXT,
)
def test_no_answer_gives_a_traceback(
    base: str, programs: dict[str, Any], files: dict[str, str], visible: str | None, tmp_path: Path
) -> None:
    on = recorded(base, **programs)
    on.files |= files
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    _, found = fly(image("ada"), table(), on, tmp_path, env=env, depth=CHECK)
    assert found.exit_code in (0, 69, 76, 77)
    json.loads(report.as_json(found))
    assert all(line.isprintable() for line in report.as_text(found).splitlines())


# --- how long it takes ------------------------------------------------------------------------------


class Slow(Recorded):
    """Its children are real processes, as on a machine with a GPU."""

    def run(self, *argv: str, environ: Any, timeout: float) -> Any:
        this_machine().run(
            sys.executable, "-ISB", "-c", "import ctypes, json", environ=environ, timeout=timeout
        )
        return super().run(*argv, environ=environ, timeout=timeout)


@pytest.mark.parametrize("name", ["rtx4090", "gb10", "none"])
def test_it_is_quick_without_kernels(name: str, tmp_path: Path, record_property: Any) -> None:
    base = recorded(name)
    on = Slow(programs=base.programs, files=base.files, devices=base.devices)
    picture = image(MACHINES[name][0])
    fly(picture, table(), on, tmp_path, depth=SERVE)  # verdicts are known then
    best = 60.0
    for _ in range(5):
        begin = time.process_time(), time.monotonic()
        fly(picture, table(), on, tmp_path, depth=SERVE)
        best = min(best, time.monotonic() - begin[1])
    record_property("seconds", best)
    print(f"{name}: {best:.3f} s")
    assert best < 5, "half a second is wanted; a busy machine is given ten times that"


# --- what is written of it --------------------------------------------------------------------------


def test_every_exit_code_is_documented() -> None:
    text = (
        (Path(__file__).parents[3] / "docs" / "exit-codes.md")
        .read_text()
        .partition("# Exit codes of an image")[2]
    )
    codes = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type) and hasattr(value, "exit_code")
    }
    for code in codes | {errors.BROKEN, errors.INTERRUPTED}:
        assert f"\n| {code} | " in text


def test_every_check_is_documented(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "preflight.md").read_text()
    _, found = fly(image("ada"), table(), recorded("rtx4090"), tmp_path)
    for finding in found.findings:
        assert finding.check.partition(" ")[0] in text


# --- the package ------------------------------------------------------------------------------------

# It runs in a process of its own, in ComfyUI's environment, and imports these by name at run time.
FOREIGN = {"torch", "comfy"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_it_imports_only_the_standard_library(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
    allowed = set(sys.stdlib_module_names) | ({"comfyrun"} if path.parent.name != "child" else set())
    assert found <= allowed


def test_a_start_imports_little() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parents[1])!r}); import comfyrun.cli, comfyrun.preflight.run; "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"subprocess", "argparse", "ctypes", "mmap", "difflib", "logging", "asyncio"} & loaded
