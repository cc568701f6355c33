"""SageAttention 2.2: its compiled kernels against fp32, and that it is they that ran."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from measures import (
    CROSS,
    DTYPES,
    FALLBACKS,
    HEAD_SIZES,
    SQUARE,
    TOLERANCES,
    Figures,
    Inputs,
    gpu_kernels,
    inputs,
    matching,
    poison,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXTENSIONS = {
    # compute capability → what setup.py of d1a57a5 builds for it
    (8, 0): {"_qattn_sm80"},
    (8, 6): {"_qattn_sm80"},
    (8, 9): {"_qattn_sm80", "_qattn_sm89"},
    (9, 0): {"_qattn_sm80", "_qattn_sm89", "_qattn_sm90"},
    (12, 0): {"_qattn_sm80", "_qattn_sm89"},
    (12, 1): {"_qattn_sm80", "_qattn_sm89"},
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the package's functions with one way to add up, and the compiled function that it has to reach."""

    name: str
    function: str
    accumulators: str
    extension: str
    symbol: str
    gpu_kernel: str
    tolerance: str

    def call(self, sage: Any, data: Inputs, *, causal: bool = False, granularity: str = "per_warp") -> Any:
        return getattr(sage, self.function)(
            data.q,
            data.k,
            data.v,
            tensor_layout="HND",
            is_causal=causal,
            qk_quant_gran=granularity,
            pv_accum_dtype=self.accumulators,
        )


FP16 = {
    "function": "sageattn_qk_int8_pv_fp16_cuda",
    "extension": "_qattn_sm80",
    "gpu_kernel": r"\bqk_int_sv_f16_attn_kernel\b",
    "tolerance": "int8 fp16",
}
FP8 = {
    "function": "sageattn_qk_int8_pv_fp8_cuda",
    "extension": "_qattn_sm89",
    "gpu_kernel": r"\bqk_int_sv_f8_attn_kernel\b",
    "tolerance": "int8 fp8",
}
SM90 = {
    "function": "sageattn_qk_int8_pv_fp8_cuda_sm90",
    "extension": "_qattn_sm90",
    "gpu_kernel": r"\bqk_int8_sv_f8_attn_kernel\b",
    "tolerance": "int8 fp8",
}
VARIANTS = {
    v.name: v
    for v in (
        Variant(name="fp16-fp32", accumulators="fp32", symbol="qk_int8_sv_f16_accum_f32_attn", **FP16),
        Variant(
            name="fp16-fp16+fp32",
            accumulators="fp16+fp32",
            symbol="qk_int8_sv_f16_accum_f16_attn_inst_buf",
            **FP16,
        ),
        Variant(
            name="fp8-fp32", accumulators="fp32", symbol="qk_int8_sv_f8_accum_f32_fuse_v_scale_attn", **FP8
        ),
        Variant(
            name="fp8-fp32+fp32",
            accumulators="fp32+fp32",
            symbol="qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf",
            **FP8,
        ),
        Variant(
            name="fp8-fp32+fp16",
            accumulators="fp32+fp16",
            symbol="qk_int8_sv_f8_accum_f16_fuse_v_scale_attn_inst_buf",
            **FP8,
        ),
        Variant(
            name="sm90-fp32+fp32",
            accumulators="fp32+fp32",
            symbol="qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf",
            **SM90,
        ),
    )
}
# What `sageattn`, which is all that ComfyUI calls, chooses.
CHOSEN = {
    (8, 0): "fp16-fp32",
    (8, 9): "fp8-fp32+fp16",
    (9, 0): "sm90-fp32+fp32",
    (12, 0): "fp8-fp32+fp16",
    (12, 1): "fp8-fp32+fp16",
}


@pytest.fixture(scope="session")
def sage(torch: Any) -> Any:
    found = pytest.importorskip("sageattention", reason="sageattention is not installed here")
    version = metadata.version("sageattention")
    if version.startswith("1."):
        pytest.skip(f"sageattention {version} is the fallback, Triton only: nothing in it is compiled")
    return found


@pytest.fixture(scope="session")
def extensions(sage: Any, capability: tuple[int, int]) -> set[str]:
    if capability not in EXTENSIONS:
        pytest.skip(f"upstream compiles nothing for compute capability {capability[0]}.{capability[1]}")
    return EXTENSIONS[capability]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, extensions: set[str], capability: tuple[int, int]) -> Variant:
    found = VARIANTS[request.param]
    if found.extension not in extensions:
        pytest.skip(f"{found.extension} is not made for compute capability {capability[0]}.{capability[1]}")
    return found


@pytest.fixture
def chosen(sage: Any, capability: tuple[int, int]) -> Variant:
    if capability not in CHOSEN:
        pytest.skip(f"sageattn takes no compiled kernel on {capability[0]}.{capability[1]}")
    return VARIANTS[CHOSEN[capability]]


@pytest.fixture
def calls(extensions: set[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of a function of a compiled library: `_qattn_sm90.qk_…`, in order."""
    made: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            made.append(name)
            return function(*arguments)

        return record

    for extension in extensions:
        library = importlib.import_module(f"sageattention.{extension}")
        for symbol in [s for s in dir(library) if s.startswith("qk_")]:
            function = getattr(library, symbol)
            monkeypatch.setattr(library, symbol, recorded(f"{extension}.{symbol}", function))
    return made


# --- that the compiled code is there and runs -------------------------------------------------------


def test_every_library_for_this_gpu_loads(sage: Any, extensions: set[str]) -> None:
    # The package itself hides a library that does not load behind a bare except.
    for extension in {"_fused"} | extensions:
        importlib.import_module(f"sageattention.{extension}")
    core = importlib.import_module("sageattention.core")
    assert {f"_qattn_sm{n}" for n in (80, 89, 90) if getattr(core, f"SM{n}_ENABLED")} == extensions


def test_a_variant_calls_its_compiled_function(
    torch: Any, sage: Any, variant: Variant, calls: list[str]
) -> None:
    variant.call(sage, inputs(torch, (200, 200), head_size=64, dtype="float16"))
    assert calls == [f"{variant.extension}.{variant.symbol}"]


def test_sageattn_chooses_the_kernel_made_for_this_gpu(
    torch: Any, sage: Any, calls: list[str], chosen: Variant
) -> None:
    data = inputs(torch, (200, 200), head_size=64, dtype="bfloat16")
    sage.sageattn(data.q, data.k, data.v)
    assert calls == [f"{chosen.extension}.{chosen.symbol}"]


def test_the_gpu_runs_the_compiled_kernel(torch: Any, sage: Any, variant: Variant) -> None:
    data = inputs(torch, (1000, 1000), head_size=128, dtype="bfloat16")
    names = gpu_kernels(torch, lambda: variant.call(sage, data))
    assert matching(names, variant.gpu_kernel), names
    assert matching(names, "QuantInt8Kernel"), names  # Q and K: by the package's own CUDA as well
    assert not matching(names, FALLBACKS), names


def test_the_gpu_runs_what_sageattn_chooses(torch: Any, sage: Any, chosen: Variant) -> None:
    data = inputs(torch, (1000, 1000), head_size=128, dtype="bfloat16")
    names = gpu_kernels(torch, lambda: sage.sageattn(data.q, data.k, data.v))
    assert matching(names, chosen.gpu_kernel), names
    assert not matching(names, FALLBACKS), names


# --- that it is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_agrees_with_fp32(
    torch: Any, sage: Any, variant: Variant, head_size: int, dtype: str, causal: bool, figures: Figures
) -> None:
    # Its causal mask is for queries and keys of one length only.
    for lengths in SQUARE if causal else SQUARE + CROSS:
        data = inputs(torch, lengths, head_size=head_size, dtype=dtype)
        got = variant.call(sage, data, causal=causal)
        figures.compare(
            torch, f"sageattention {variant.name}", got, data, TOLERANCES[variant.tolerance], causal=causal
        )
    figures.verdict()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_quantised_by_thread_agrees_with_fp32(
    torch: Any,
    sage: Any,
    variant: Variant,
    head_size: int,
    dtype: str,
    capability: tuple[int, int],
    figures: Figures,
) -> None:
    if capability >= (12, 0):
        pytest.skip(
            "upstream quantises by warp on this GPU: the finer way is a Triton kernel that it says fails"
        )
    for lengths in SQUARE + CROSS:
        data = inputs(torch, lengths, head_size=head_size, dtype=dtype)
        got = variant.call(sage, data, granularity="per_thread")
        name = f"sageattention {variant.name} per_thread"
        figures.compare(torch, name, got, data, TOLERANCES[variant.tolerance])
    figures.verdict()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_called_as_comfyui_does(
    torch: Any,
    sage: Any,
    head_size: int,
    dtype: str,
    layout: str,
    chosen: Variant,
    figures: Figures,
) -> None:
    for lengths in SQUARE + CROSS:
        data = inputs(torch, lengths, head_size=head_size, dtype=dtype, heads=3)
        q, k, v = data.nhd()
        if layout == "HND":  # views, as they come out of a projection
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        got = sage.sageattn(q, k, v, is_causal=False, tensor_layout=layout, sm_scale=None, smooth_k=False)
        if layout == "NHD":
            got = got.transpose(1, 2)
        figures.compare(torch, f"sageattention sageattn {layout}", got, data, TOLERANCES[chosen.tolerance])
    figures.verdict()


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_shared_by_groups_of_heads(
    torch: Any, sage: Any, variant: Variant, dtype: str, figures: Figures
) -> None:
    for lengths in ((128, 128), (200, 77), (1000, 1000)):
        data = inputs(torch, lengths, head_size=128, dtype=dtype, heads=6, kv_heads=2)
        name = f"sageattention {variant.name} grouped"
        figures.compare(torch, name, variant.call(sage, data), data, TOLERANCES[variant.tolerance])
    figures.verdict()


# --- the NaN of short and odd lengths ---------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_rows_beyond_the_end_are_zero(
    torch: Any, sage: Any, variant: Variant, head_size: int, causal: bool, figures: Figures
) -> None:
    """What the edit of attn_utils.cuh mends: kNoFill left the last block's rows in shared memory as they were.

    A weight of 0 times an old NaN is NaN. So each multiprocessor's shared memory
    is filled with NaN by the kernel itself, from a V that holds nothing else, and
    tensors are made where NaN lies.
    """
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    old = inputs(torch, (128, 256), head_size=head_size, dtype="float16", heads=blocks, batch=1)
    old.v.fill_(float("nan"))
    for length in (1, 2, 15, 17, 31, 33, 63, 65, 127, 129, 191, 200):
        data = inputs(torch, (length, length), head_size=head_size, dtype="float16", heads=blocks, batch=1)
        poison(torch)
        assert variant.call(sage, old).isnan().any()
        got = variant.call(sage, data, causal=causal)
        name = f"sageattention {variant.name} after NaN"
        figures.compare(torch, name, got, data, TOLERANCES[variant.tolerance], causal=causal)
        assert same(torch, got, variant.call(sage, data, causal=causal)), f"length {length}, called again"
    figures.verdict()


# --- what it does not do ----------------------------------------------------------------------------


def test_it_takes_no_mask(sage: Any) -> None:
    # It would be swallowed by **kwargs. ComfyUI asks the same question, and takes another attention for masks.
    assert "attn_mask" not in inspect.signature(sage.sageattn).parameters


def test_a_head_that_is_too_large_is_refused(torch: Any, sage: Any, variant: Variant) -> None:
    with pytest.raises(ValueError, match="Unsupported head_dim"):
        variant.call(sage, inputs(torch, (128, 128), head_size=160, dtype="float16"))
