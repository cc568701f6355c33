"""flash-attn 2.8.3: its compiled kernels against fp32, and that what was left out of them raises."""

from __future__ import annotations

import importlib
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
    gpu_kernels,
    inputs,
    matching,
    poison,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own copy is called pytorch_flash::…
GPU_KERNEL = r"(?<!\w)flash::flash_fwd_(splitkv_)?kernel"
LEFT_OUT = r"This flash attention build does not support {}"


@pytest.fixture(scope="session")
def flash(torch: Any) -> Any:
    return pytest.importorskip("flash_attn", reason="flash-attn is not installed here")


def attend(flash: Any, data: Any, **options: Any) -> Any:
    """flash_attn_func takes (batch, length, heads, head size)."""
    return flash.flash_attn_func(*data.nhd(), **options).transpose(1, 2)


# --- that the compiled code is there and runs -------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "symbol"), [("flash_attn_func", "fwd"), ("flash_attn_varlen_func", "varlen_fwd")]
)
def test_it_calls_its_compiled_function(
    torch: Any, flash: Any, monkeypatch: pytest.MonkeyPatch, function: str, symbol: str
) -> None:
    library = importlib.import_module("flash_attn_2_cuda")
    made = []
    original = getattr(library, symbol)

    def recorded(*arguments: Any) -> Any:
        made.append(symbol)
        return original(*arguments)

    monkeypatch.setattr(library, symbol, recorded)
    data = inputs(torch, (200, 200), head_size=64, dtype="float16", batch=1)
    if function == "flash_attn_func":
        attend(flash, data)
    else:
        varlen(torch, flash, data)
    assert made == [symbol]


@pytest.mark.parametrize("lengths", [(1000, 1000), (1, 4099)], ids=str)
def test_the_gpu_runs_the_compiled_kernel(torch: Any, flash: Any, lengths: tuple[int, int]) -> None:
    data = inputs(torch, lengths, head_size=128, dtype="bfloat16")
    names = gpu_kernels(torch, lambda: attend(flash, data))
    assert matching(names, GPU_KERNEL), names
    assert not matching(names, FALLBACKS), names


# --- that it is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_agrees_with_fp32(
    torch: Any, flash: Any, head_size: int, dtype: str, causal: bool, figures: Figures
) -> None:
    for lengths in SQUARE + CROSS:
        data = inputs(torch, lengths, head_size=head_size, dtype=dtype)
        got = attend(flash, data, causal=causal)
        figures.compare(torch, "flash-attn", got, data, TOLERANCES[f"flash {dtype}"], causal=causal)
    figures.verdict()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_called_as_comfyui_does(torch: Any, flash: Any, head_size: int, dtype: str, figures: Figures) -> None:
    for lengths in SQUARE + CROSS:
        data = inputs(torch, lengths, head_size=head_size, dtype=dtype, heads=3)
        q, k, v = (t.transpose(1, 2) for t in (data.q, data.k, data.v))  # views
        got = flash.flash_attn_func(q, k, v, dropout_p=0.0, causal=False, softmax_scale=None).transpose(1, 2)
        figures.compare(torch, "flash-attn as ComfyUI", got, data, TOLERANCES[f"flash {dtype}"])
    figures.verdict()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_shared_by_groups_of_heads(
    torch: Any, flash: Any, dtype: str, causal: bool, figures: Figures
) -> None:
    for lengths in ((1, 1000), (128, 128), (200, 77), (1000, 1000)):
        data = inputs(torch, lengths, head_size=128, dtype=dtype, heads=6, kv_heads=2)
        got = attend(flash, data, causal=causal)
        figures.compare(torch, "flash-attn grouped", got, data, TOLERANCES[f"flash {dtype}"], causal=causal)
    figures.verdict()


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_sequences(torch: Any, flash: Any, dtype: str, figures: Figures) -> None:
    for lengths in ((17, 17), (200, 77), (1000, 1000)):
        data = inputs(torch, lengths, head_size=128, dtype=dtype, batch=1)
        got = varlen(torch, flash, data)
        figures.compare(torch, "flash-attn varlen", got, data, TOLERANCES[f"flash {dtype}"])
    figures.verdict()


def varlen(torch: Any, flash: Any, data: Any, **options: Any) -> Any:
    """One sequence, as if it were many."""
    q, k, v = (t[0] for t in data.nhd())
    ends = [torch.tensor([0, len(t)], dtype=torch.int32, device=q.device) for t in (q, k)]
    return flash.flash_attn_varlen_func(q, k, v, *ends, len(q), len(k), **options).transpose(0, 1)[None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_from_a_cache(torch: Any, flash: Any, dtype: str, figures: Figures) -> None:
    for lengths in ((1, 77), (17, 1000), (200, 200)):
        data = inputs(torch, lengths, head_size=128, dtype=dtype)
        got = flash.flash_attn_with_kvcache(*data.nhd()).transpose(1, 2)
        figures.compare(torch, "flash-attn kvcache", got, data, TOLERANCES[f"flash {dtype}"])
    figures.verdict()


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_rows_beyond_the_end_are_zero(torch: Any, flash: Any, head_size: int, figures: Figures) -> None:
    """As for SageAttention: NaN in shared memory and in what new tensors are made of."""
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    old = inputs(torch, (128, 256), head_size=head_size, dtype="float16", heads=blocks, batch=1)
    old.v.fill_(float("nan"))
    for length in (1, 17, 63, 65, 127, 129, 200):
        data = inputs(torch, (length, length), head_size=head_size, dtype="float16", heads=blocks, batch=1)
        poison(torch)
        assert attend(flash, old).isnan().any()
        got = attend(flash, data)
        figures.compare(torch, "flash-attn after NaN", got, data, TOLERANCES["flash float16"])
        assert same(torch, got, attend(flash, data)), f"length {length}, called again"
    figures.verdict()


# --- what was left out ------------------------------------------------------------------------------
# Compiled for inference: these are gone, and a call with one of them must raise. A build in which only nvcc
# was told so has no such check in flash_api.cpp, and silently computes something else.

LEFT_OUT_OPTIONS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "dropout": ("dropout", lambda _: {"dropout_p": 0.1}),
    "softcap": ("softcap", lambda _: {"softcap": 30.0}),
    "alibi": ("alibi", lambda torch: {"alibi_slopes": torch.tensor([0.5, 0.25], device="cuda")}),
    "window": ("local attention", lambda _: {"window_size": (16, 16)}),
    "window-left": ("local attention", lambda _: {"window_size": (16, -1)}),
    "window-causal": ("local attention", lambda _: {"window_size": (16, 0), "causal": True}),
    "window-right": ("local attention", lambda _: {"window_size": (-1, 16)}),
}


@pytest.mark.parametrize("lengths", [(200, 200), (1, 200), (128, 128)], ids=str)
@pytest.mark.parametrize("option", LEFT_OUT_OPTIONS)
def test_left_out(torch: Any, flash: Any, option: str, lengths: tuple[int, int]) -> None:
    what, options = LEFT_OUT_OPTIONS[option]
    data = inputs(torch, lengths, head_size=64, dtype="float16")
    with pytest.raises(RuntimeError, match=LEFT_OUT.format(what)):
        attend(flash, data, **options(torch))


@pytest.mark.parametrize("option", LEFT_OUT_OPTIONS)
def test_left_out_of_packed_sequences(torch: Any, flash: Any, option: str) -> None:
    what, options = LEFT_OUT_OPTIONS[option]
    data = inputs(torch, (200, 200), head_size=64, dtype="float16", batch=1)
    with pytest.raises(RuntimeError, match=LEFT_OUT.format(what)):
        varlen(torch, flash, data, **options(torch))


@pytest.mark.parametrize("option", [o for o in LEFT_OUT_OPTIONS if o != "dropout"])
def test_left_out_of_attention_from_a_cache(torch: Any, flash: Any, option: str) -> None:
    what, options = LEFT_OUT_OPTIONS[option]
    data = inputs(torch, (17, 200), head_size=64, dtype="float16")
    with pytest.raises(RuntimeError, match=LEFT_OUT.format(what)):
        flash.flash_attn_with_kvcache(*data.nhd(), **options(torch))


@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_is_left_out(torch: Any, flash: Any, dtype: str, head_size: int) -> None:
    data = inputs(torch, (200, 200), head_size=head_size, dtype=dtype)
    q, k, v = (t.requires_grad_() for t in data.nhd())
    out = flash.flash_attn_func(q, k, v)
    with pytest.raises(RuntimeError, match=LEFT_OUT.format("backward")):
        out.float().sum().backward()
    assert q.grad is None


def test_backward_of_packed_sequences_is_left_out(torch: Any, flash: Any) -> None:
    data = inputs(torch, (200, 200), head_size=64, dtype="float16", batch=1)
    for tensor in (data.q, data.k, data.v):
        tensor.requires_grad_()
    out = varlen(torch, flash, data)
    with pytest.raises(RuntimeError, match=LEFT_OUT.format("backward")):
        out.float().sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_that_change_nothing_are_right(torch: Any, flash: Any, dtype: str, figures: Figures) -> None:
    """A window as wide as the sequence is none, and one that ends at the diagonal is the causal mask."""
    data = inputs(torch, (200, 200), head_size=64, dtype=dtype)
    tolerance = TOLERANCES[f"flash {dtype}"]
    for options in (
        {"window_size": (200, 200)},
        {"softcap": 0.0},
        {"dropout_p": 0.0},
        {"window_size": (-1, -1)},
    ):
        figures.compare(torch, "flash-attn", attend(flash, data, **options), data, tolerance)
    got = attend(flash, data, window_size=(-1, 0))
    figures.compare(torch, "flash-attn", got, data, tolerance, causal=True)
    figures.verdict()


def test_a_head_that_is_too_large_is_refused(torch: Any, flash: Any) -> None:
    with pytest.raises(RuntimeError, match="at most 256"):
        attend(flash, inputs(torch, (128, 128), head_size=264, dtype="float16"))
