"""The child that compares a kernel with plain attention: by its protocol, and with torch and ComfyUI where they are.

IMGBUILD_TORCH names a site-packages folder with a CPU torch and ComfyUI's requirements, IMGBUILD_COMFYUI_TREES
the trees (tests/unit/comfyrun/syntheticui.py); without them only the protocol is tested.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from syntheticui import real_trees

from comfyrun.preflight import kernels
from comfyrun.preflight.kernels import SCRIPT
from comfyrun.preflight.system import run
from comfyrun.preflight.verdicts import Verdict

TORCH = os.environ.get("IMGBUILD_TORCH", "")

# SageAttention's interface, computed by torch, and wrong in one way.
KERNEL = """
import os, time, torch

def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True, **kwargs):
    mode = os.environ["MODE"]
    if mode == "raises":
        raise RuntimeError("no kernel image is available for execution on the device")
    if mode == "crashes":
        os.kill(os.getpid(), 11)
    if mode == "hangs":
        time.sleep(600)
    if mode == "full":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if mode == "exits":
        raise SystemExit(-1)
    if tensor_layout == "NHD":
        if mode == "falls back":
            raise RuntimeError("only HND")
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=sm_scale)
    if mode == "nan":
        out[..., -1, :] = float("nan")
    if mode == "one row" and out.shape[-2] > 150:
        out[..., -1, :] = 0
    if mode == "shape":
        out = out[..., :-1]
    return out.transpose(1, 2) if tensor_layout == "NHD" else out
"""


def ask(tree: str, *options: str, attention: str = "sage", timeout: float = 300, **environ: str) -> Verdict:
    here = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", **environ}
    script = [
        sys.executable,
        "-PB",
        str(SCRIPT),
        f"--tree={tree}",
        f"--attention={attention}",
        "--device=cpu",
    ]
    return kernels.judge(run(*script, *options, environ=here, timeout=timeout))


def test_a_module_that_does_not_import() -> None:
    found = ask("/nowhere", "--import=no_such_kernel")
    assert found.outcome == "fails"
    assert found.detail == "no_such_kernel does not import: No module named 'no_such_kernel'"


def test_what_a_broken_library_says_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "print('noise')\nraise OSError('undefined symbol:\\n  _Z3foo\\x1b')\n"
    )
    found = ask("/nowhere", "--import=broken", PYTHONPATH=str(tmp_path))
    assert (found.outcome, found.detail) == ("fails", "broken does not import: undefined symbol: _Z3foo")


def test_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = ask("/nowhere", PYTHONPATH=str(tmp_path))
    assert found.outcome == "fails"
    assert found.detail == "ImportError: libcudart.so.13: cannot open shared object file"


needs_torch = pytest.mark.skipif(not TORCH, reason="IMGBUILD_TORCH names no site-packages with torch")


def with_torch(tmp_path: Path, mode: str, timeout: float = 300, attention: str = "sage") -> Verdict:
    (tmp_path / "sageattention.py").write_text(KERNEL)
    path = f"{tmp_path}{os.pathsep}{TORCH}"
    tree = str(real_trees()[0])
    return ask(tree, "--import=torch", PYTHONPATH=path, MODE=mode, timeout=timeout, attention=attention)


@needs_torch
@pytest.mark.parametrize(
    ("mode", "outcome", "words"),
    [
        ("raises", "fails", "RuntimeError: no kernel image is available"),
        ("crashes", "fails", "it crashes: killed by SIGSEGV"),
        ("exits", "fails", "SystemExit: -1"),
        ("full", "unknown", "no GPU memory is left: CUDA out of memory"),
        ("nan", "differs", "bfloat16, 1 x 1, heads of 64: NaN or infinite values"),
        ("one row", "differs", "bfloat16, 200 x 77, heads of 64: "),
        ("shape", "differs", "shape (2, 2, 1, 63) instead of (2, 2, 1, 64)"),
        ("falls back", "fails", "ComfyUI falls back at every call: Error running sage attention: only HND"),
    ],
)
def test_a_kernel_that_is_wrong(tmp_path: Path, mode: str, outcome: str, words: str) -> None:
    found = with_torch(tmp_path, mode)
    assert found.outcome == outcome, found
    assert words in found.detail


@needs_torch
def test_a_kernel_that_hangs(tmp_path: Path) -> None:
    found = with_torch(tmp_path, "hangs", timeout=40)
    assert (found.outcome, found.detail) == ("fails", "it hangs: no answer in 40 s")


@needs_torch
def test_a_kernel_that_agrees_unless_its_comfyui_ignores_masks(tmp_path: Path) -> None:
    found = with_torch(tmp_path, "good")
    version = (real_trees()[0] / "comfyui_version.py").read_text()
    if '"0.3.' in version:  # it hands the mask to SageAttention, which swallows it
        assert found.outcome == "differs"
        assert "with a mask, bfloat16, 17 x 17" in found.detail
    else:
        assert (found.outcome, found.detail) == ("agrees", "agrees with plain attention in 44 comparisons")


@needs_torch
def test_an_attention_that_comfyui_does_not_have(tmp_path: Path) -> None:
    found = with_torch(tmp_path, "good", attention="comfy_kitchen_int8")
    assert found.outcome == "fails"
    assert "ComfyUI has no attention function 'comfy_kitchen_int8'" in found.detail
