"""Kernels: which are tried, what their verdict is, where it is kept, and what it does to the Launch."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preflightkit import fly, image_of
from realimages import table
from recorded import GIB, recorded, says

from comfyrun.preflight import kernels, verdicts
from comfyrun.preflight.finding import Severity
from comfyrun.preflight.kernels import BACKENDS
from comfyrun.preflight.run import CHECK, PREVIEW, SERVE
from comfyrun.preflight.system import Asked
from comfyrun.preflight.verdicts import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from comfyrun.launch import Launch
    from comfyrun.preflight.report import Report

SAGE, FLASH, CK = BACKENDS
ADA = image_of("ada")


def verdict(outcome: str, detail: str = "as it is", seconds: float = 7.5) -> dict[str, str]:
    return says({"schema": 1, "outcome": outcome, "detail": detail, "seconds": seconds})


DIFFERS = verdict("differs", "it computes something else (bfloat16, 17 x 17)")


# --- which ------------------------------------------------------------------------------------------


def test_which_are_tried() -> None:
    assert kernels.wanted(["--use-sage-attention"], ADA, every=False) == [SAGE]
    assert kernels.wanted(["--use-ck-attention"], ADA, every=False) == [CK]
    assert kernels.wanted([], ADA, every=False) == []
    assert kernels.wanted([], ADA, every=True) == [SAGE, FLASH]
    assert kernels.wanted(["--use-ck-attention"], image_of("cpu"), every=True) == [CK]


# --- what its end means -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "outcome", "detail"),
    [
        (Asked(outcome="ended", stdout=verdict("agrees")["stdout"]), "agrees", "as it is"),
        (Asked(outcome="late", seconds=180), "fails", "it hangs: no answer in 180 s"),
        (Asked(outcome="absent", stderr="No such file"), "unknown", "cannot be started: No such file"),
        (Asked(outcome="ended", returncode=-11), "fails", "it crashes: killed by SIGSEGV"),
        (
            Asked(outcome="ended", returncode=-6, stdout=verdict("agrees")["stdout"]),
            "fails",
            "killed by SIGABRT",
        ),
        (
            Asked(outcome="ended", returncode=1, stderr="ImportError: x"),
            "fails",
            "it fails: exit code 1: ImportError: x",
        ),
        (Asked(outcome="ended", stdout="<html>"), "fails", "its answer cannot be understood"),
        (
            Asked(outcome="ended", stdout=says({"schema": 1, "outcome": "agrees"})["stdout"]),
            "fails",
            "cannot be",
        ),
    ],
)
def test_verdicts(asked: Asked, outcome: str, detail: str) -> None:
    found = kernels.judge(asked)
    assert found.outcome == outcome
    assert detail in found.detail


@given(st.text(), st.text(), st.integers(-70, 300))
def test_no_child_is_too_strange(out: str, err: str, code: int) -> None:
    found = kernels.judge(Asked(outcome="ended", returncode=code, stdout=out, stderr=err))
    assert found.outcome in verdicts.OUTCOMES


@pytest.mark.parametrize(
    ("outcome", "strict", "severity", "dropped"),
    [
        ("agrees", True, Severity.OK, False),
        ("differs", False, Severity.WARNING, True),
        ("fails", False, Severity.WARNING, True),
        ("fails", True, Severity.ERROR, False),
        ("unknown", False, Severity.WARNING, False),
        ("unknown", True, Severity.ERROR, False),
    ],
)
def test_what_is_said(outcome: str, strict: bool, severity: Severity, dropped: bool) -> None:
    line, reason = kernels.finding(SAGE, Verdict(outcome=outcome, detail="why"), kept=False, strict=strict)
    assert line.severity is severity
    assert (reason == "why") is dropped
    assert "why" in line.message


# --- where it is kept -------------------------------------------------------------------------------


def test_kept_and_read_again(tmp_path: Path) -> None:
    place = verdicts.place(str(tmp_path), "sageattention", "key", "GPU-1")
    assert place.parent == tmp_path / "comfyrun" / "kernels"
    assert verdicts.load(place) is None
    made = Verdict(outcome="differs", detail="by 3", seconds=2.5)
    verdicts.save(place, made)
    assert verdicts.load(place) == made
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    assert verdicts.place(str(tmp_path), "sageattention", "key", "GPU-2") != place
    assert verdicts.place(str(tmp_path), "sageattentionkey", "", "GPU-1") != place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"schema": 2, "outcome": "agrees", "detail": "x", "seconds": 1}',
        '{"schema": 1, "outcome": "well", "detail": "x", "seconds": 1}',
        '{"schema": 1, "outcome": "agrees", "detail": "x", "seconds": true}',
        '{"schema": 1, "outcome": "agrees", "detail": "x", "seconds": NaN}',
        '{"schema": 1, "outcome": "agrees", "detail": 5, "seconds": 1}',
    ],
)
def test_a_verdict_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert verdicts.load(path) is None


def test_what_cannot_be_kept_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "comfyrun").write_text("a file in the way")
    place = verdicts.place(str(tmp_path), "x")
    verdicts.save(place, Verdict(outcome="agrees", detail=""))
    assert verdicts.load(place) is None
    (tmp_path / "y").write_bytes(b"\xff")
    assert verdicts.load(tmp_path / "y") is None
    verdicts.save(verdicts.place("a\0b", "x"), Verdict(outcome="agrees", detail=""))


def test_a_verdict_holds_for_one_kernel_gpu_driver_and_comfyui(tmp_path: Path) -> None:
    on = recorded("rtx4090")
    _, found = go(tmp_path, on)
    assert found.device is not None
    bench = kernels.Bench(
        image=ADA,
        layout=launch_layout(),
        system=on.system,
        environ={},
        cache="/c",
        device=found.device,
        driver="580.1",
    )
    base = bench.identity(SAGE)
    others = [
        dataclasses.replace(bench, driver="580.2"),
        dataclasses.replace(bench, device=dataclasses.replace(found.device, uuid="GPU-ffff")),
        dataclasses.replace(bench, image=dataclasses.replace(ADA, comfyui="0.34.0")),
        dataclasses.replace(bench, image=dataclasses.replace(ADA, kernels=())),
    ]
    assert len({base, bench.identity(FLASH), *(b.identity(SAGE) for b in others)}) == 6


def launch_layout() -> Any:
    from comfyrun.layout import Layout

    return Layout()


# --- the whole --------------------------------------------------------------------------------------


def go(tmp_path: Path, on: Any, *arguments: str, depth: Any = SERVE, **env: str) -> tuple[Launch, Report]:
    return fly(ADA, table(), on, tmp_path, *arguments, env=env, depth=depth)


def tried(on: Any) -> list[str]:
    return [name for name in on.names if name.startswith("attention")]


def test_a_start_tries_what_it_uses_and_remembers(tmp_path: Path) -> None:
    on = recorded("rtx4090")
    launch, found = go(tmp_path, on)
    assert tried(on) == ["attention sage"]
    assert (launch.attention, found.dropped, found.notes) == ("sage", {}, ())
    again = recorded("rtx4090", **{"attention sage": {"returncode": 1}})
    _, found = go(tmp_path, again)
    assert tried(again) == []
    assert again.names == ["nvml", "probe"]
    assert found.dropped == {}


def test_another_driver_is_another_verdict(tmp_path: Path) -> None:
    go(tmp_path, recorded("rtx4090"))
    answer = json.loads(recorded("rtx4090").programs["nvml"]["stdout"])
    on = recorded("rtx4090", nvml=says({**answer, "driver": "590.10"}))
    go(tmp_path, on)
    assert tried(on) == ["attention sage"]


def test_the_child_gets_the_servers_environment_and_the_kernels_modules(tmp_path: Path) -> None:
    on = recorded("two", **{"attention sage": verdict("agrees")})
    launch, _ = go(tmp_path, on, HF_TOKEN="x")
    argv = on.asked[-1]
    assert argv[:2] == ("/opt/venv/bin/python", "-PB")
    assert argv[3:] == ("--tree=/opt/comfyui", "--attention=sage", "--import=sageattention")
    assert on.environs[-1] == launch.environment
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "GPU-44a1b2c3-1111-2222-3333-444455556664"
    shown = {v.name: v.origin for v in launch.variables}
    assert shown["CUDA_VISIBLE_DEVICES"] == "preflight: of several GPUs the one that fits"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (DIFFERS, "it computes something else (bfloat16, 17 x 17)"),
        ({"hangs": 180}, "it hangs: no answer in 180 s"),
        ({"returncode": -11}, "it crashes: killed by SIGSEGV"),
    ],
)
def test_a_kernel_that_fails_is_dropped_with_one_line(tmp_path: Path, reply: Any, reason: str) -> None:
    on = recorded("rtx4090", **{"attention sage": reply})
    launch, found = go(tmp_path, on)
    assert found.dropped == {"sageattention": reason}
    assert found.failure is None
    assert launch.attention == "sdpa"
    assert "--use-sage-attention" not in launch.argv
    assert found.notes == ()
    (note,) = [n for n in launch.notes if "sageattention" in n]
    assert reason in note


def test_what_failed_is_remembered_until_somebody_checks(tmp_path: Path) -> None:
    go(tmp_path, recorded("rtx4090", **{"attention sage": DIFFERS}))
    on = recorded("rtx4090")
    launch, found = go(tmp_path, on)
    assert (tried(on), launch.attention) == ([], "sdpa")
    (line,) = [f for f in found.findings if f.check == "kernel sageattention"]
    assert "(known from before; comfyrun check tries it again)" in line.message
    on = recorded("rtx4090")
    launch, found = go(tmp_path, on, depth=CHECK)
    assert (tried(on), launch.attention, found.dropped) == (["attention sage", "attention flash"], "sage", {})


def test_strictly_it_is_an_error(tmp_path: Path) -> None:
    on = recorded("rtx4090", **{"attention sage": DIFFERS})
    _, found = go(tmp_path, on, COMFY_STRICT="1")
    assert found.exit_code == 77
    assert "sageattention: it computes something else" in str(found.failure)
    assert found.dropped == {}


def test_a_full_gpu_says_nothing_of_the_kernel(tmp_path: Path) -> None:
    full = {"attention sage": verdict("unknown", "no GPU memory is left")}
    launch, found = go(tmp_path, recorded("rtx4090", **full))
    assert launch.attention == "sage"
    (note,) = found.notes
    assert note == "sageattention could not be tried: no GPU memory is left; it is used all the same"
    on = recorded("rtx4090")
    go(tmp_path, on)
    assert tried(on) == ["attention sage"], "it was not kept"
    _, strictly = go(tmp_path / "other", recorded("rtx4090", **full), COMFY_STRICT="on")
    assert strictly.exit_code == 77


def test_attention_that_is_asked_for(tmp_path: Path) -> None:
    on = recorded("rtx4090", **{"attention flash": DIFFERS})
    launch, found = go(tmp_path, on, COMFY_ATTENTION="flash")
    assert tried(on) == ["attention flash"]
    assert (launch.attention, list(found.dropped)) == ("sdpa", ["flash-attn"])
    on = recorded("rtx4090", **{"attention comfy_kitchen_int8": verdict("agrees")})
    launch, _ = go(tmp_path, on, "--use-ck-attention")
    assert (tried(on), launch.attention) == (["attention comfy_kitchen_int8"], "ck")
    assert not any(word.startswith("--import") for word in on.asked[-1])
    on = recorded("rtx4090")
    go(tmp_path, on, COMFY_ATTENTION="sdpa")
    assert tried(on) == []


def test_a_preview_runs_nothing_and_knows_what_is_known(tmp_path: Path) -> None:
    on = recorded("rtx4090")
    launch, found = go(tmp_path, on, depth=PREVIEW)
    assert (on.names, launch.attention, launch.tier) == (["nvml"], "sage", "24gb")
    assert list(tmp_path.iterdir()) == []
    go(tmp_path, recorded("rtx4090", **{"attention sage": DIFFERS}))
    launch, found = go(tmp_path, on, depth=PREVIEW)
    assert (launch.attention, list(found.dropped)) == ("sdpa", ["sageattention"])


def test_no_kernel_is_tried_where_the_probe_fails(tmp_path: Path) -> None:
    refused = says({"ok": False, "error": "no kernel image is available", "code": 209})
    on = recorded("rtx4090", probe={**refused, "returncode": 1})
    _, found = go(tmp_path, on, depth=CHECK)
    assert tried(on) == []
    assert found.exit_code == 76
    full = recorded("rtx4090", probe=says({"ok": False, "error": "out of memory", "code": 2}))
    assert go(tmp_path, full)[1].exit_code == 69


def test_an_image_without_a_probe(tmp_path: Path) -> None:
    on = recorded("rtx4090")
    bare = dataclasses.replace(ADA, kernels=())
    _, found = fly(bare, table(), on, tmp_path, "--use-pytorch-cross-attention", depth=CHECK)
    assert on.names == ["nvml"]
    assert [f.message for f in found.findings if f.check == "probe"] == ["this image has no probe kernel"]
    assert found.gib == pytest.approx(24564 * 1024**2 / GIB)
