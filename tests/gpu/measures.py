"""Attention in fp32, what a kernel may differ from it, and by how much it did."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEAD_SIZES = (64, 96, 128)
DTYPES = ("bfloat16", "float16")

SQUARE = ((1, 1), (17, 17), (127, 127), (128, 128), (200, 200), (1000, 1000), (1024, 1024), (4099, 4099))
"""Lengths of queries and keys. Blocks are of 32 to 256 rows: on them, beside them, and shorter than any."""
CROSS = ((1, 77), (17, 1000), (200, 1), (1024, 77), (77, 4099))


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """An output may differ from the reference by `relative`·A + `absolute`, with A = softmax(QKᵀ)·|V|.

    A is what the errors of the weights and of V scale with. It bounds each
    element by its own row, so that one wrong row among 4099 fails, which no
    mean shows; `cosine` over all of them catches what is wrong everywhere a little.
    """

    relative: float
    absolute: float
    cosine: float


# Each was computed before it was chosen: the same shapes in fp32 on a CPU, with the roundings that the kernel
# documents and no others, gave at most the share in brackets. About twice that is allowed, for what this
# leaves out: the order of sums, exp2 by table, accumulators with 13 to 22 bits.
TOLERANCES = {
    # Weights and output are rounded to the type once each: half a unit in the last place is 2⁻⁸ of bf16,
    # 2⁻¹¹ of fp16, so that the bound is 3 of them. (0.0061, cosine 1 - 5e-6)
    "flash bfloat16": Tolerance(relative=3 / 2**8, absolute=1e-3, cosine=0.99995),
    # (0.0008, cosine 1 - 1e-6)
    "flash float16": Tolerance(relative=3 / 2**11, absolute=2e-4, cosine=0.999995),
    # Q and K in 8 bits by groups of 16 to 128 rows, V and the weights in fp16: an error of the logits
    # of 0.011 on average for normally distributed data. (0.041, cosine 1 - 1e-4)
    "int8 fp16": Tolerance(relative=0.08, absolute=2e-3, cosine=0.9995),
    # The same, and weights and V in e4m3, with 3 bits behind the point: up to 1/17 each, 2.6 % on average.
    # What is absolute is V's smallest step, where a column's largest value becomes 2.25. (0.115, cosine 1 - 9e-4)
    "int8 fp8": Tolerance(relative=0.2, absolute=5e-3, cosine=0.998),
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of shape (batch, heads, length, head size)."""

    q: Any
    k: Any
    v: Any

    def nhd(self) -> tuple[Any, Any, Any]:
        """(batch, length, heads, head size), contiguous."""
        q, k, v = (t.transpose(1, 2).contiguous() for t in (self.q, self.k, self.v))
        return q, k, v


def inputs(
    torch: Any,
    lengths: tuple[int, int],
    *,
    head_size: int,
    dtype: str,
    heads: int = 2,
    kv_heads: int | None = None,
    batch: int = 2,
) -> Inputs:
    """Normally distributed; the keys have a mean of their own in each channel, as real ones do."""
    generator = torch.Generator("cuda").manual_seed(20261121)
    device = torch.device("cuda", 0)  # with its index: sageattn looks the GPU up by it

    def normal(count: int, length: int) -> Any:
        return torch.randn(batch, count, length, head_size, device=device, generator=generator)

    q_len, kv_len = lengths
    kv_heads = kv_heads or heads
    kind = getattr(torch, dtype)
    q, k, v = normal(heads, q_len), normal(kv_heads, kv_len), normal(kv_heads, kv_len)
    return Inputs(q=q.to(kind), k=(k + normal(kv_heads, 1)).to(kind), v=v.to(kind))


def reference(torch: Any, data: Inputs, *, causal: bool = False) -> tuple[Any, Any]:
    """Attention in fp32 and A (see Tolerance), by torch's plain implementation, of the very same inputs.

    A causal mask ends at the lower right corner, as flash-attn's does; a query that sees no key gives 0.
    """
    group = data.q.shape[1] // data.k.shape[1]
    q = data.q.float()
    k, v = (t.float().repeat_interleave(group, dim=1) for t in (data.k, data.v))
    mask = None
    if causal:
        rows, columns = q.shape[2], k.shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attention = torch.nn.functional.scaled_dot_product_attention
        both = attention(q, k, torch.cat([v, v.abs()], dim=-1), attn_mask=mask)
    out, scale = both.nan_to_num(0.0).split(v.shape[-1], dim=-1)
    return out, scale


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    kernel: str
    dtype: str
    head_size: int
    q_len: int
    kv_len: int
    causal: bool
    max_error: float
    share: float
    """Of what the tolerance allows, at the worst element: above 1 is wrong."""
    cosine: float
    finite: bool
    wrong: bool


@dataclass
class Figures:
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self, torch: Any, kernel: str, got: Any, data: Inputs, tolerance: Tolerance, *, causal: bool = False
    ) -> Row:
        """Compare `got`, of the shape of `data.q`, with the reference, and keep what comes out."""
        wanted, scale = reference(torch, data, causal=causal)
        assert got.shape == data.q.shape, f"{kernel} gave {tuple(got.shape)} for {tuple(data.q.shape)}"
        assert got.dtype == data.q.dtype, f"{kernel} gave {got.dtype} for {data.q.dtype}"
        finite = bool(got.isfinite().all())
        got = got.nan_to_num()  # figures that JSON can hold
        error = (got.float() - wanted).abs()
        share = float((error / (tolerance.relative * scale + tolerance.absolute)).max())
        # In fp32 the sums of a million products would cost more than the kernel's own errors.
        cosine = float(
            torch.nn.functional.cosine_similarity(got.double().flatten(), wanted.double().flatten(), dim=0)
        )
        row = Row(
            kernel=kernel,
            dtype=str(data.q.dtype).removeprefix("torch."),
            head_size=data.q.shape[-1],
            q_len=data.q.shape[2],
            kv_len=data.k.shape[2],
            causal=causal,
            max_error=float(error.max()),
            share=share,
            cosine=cosine,
            finite=finite,
            wrong=not (finite and share <= 1 and cosine >= tolerance.cosine),
        )
        self.rows.append(asdict(row))
        return row

    def verdict(self) -> None:
        """Fails with every comparison that is wrong."""
        assert self.rows, "nothing was compared"
        wrong = [r for r in self.rows if r["wrong"]]
        assert not wrong, f"{len(wrong)} of {len(self.rows)} are wrong:\n" + "\n".join(map(str, wrong))


def poison(torch: Any) -> None:
    """Fill the memory that the next tensors are made in: bytes of ones are NaN in every type.

    What a kernel leaves unwritten, or reads beyond an end, then shows.
    """
    torch.cuda.empty_cache()
    blocks = [
        torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in (2**28, 2**22, *[2**18] * 32)
    ]
    torch.cuda.synchronize()
    del blocks


def same(torch: Any, one: Any, other: Any) -> bool:
    """Bit for bit; NaN is told by a comparison with the reference."""
    return bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


def gpu_kernels(torch: Any, call: Callable[[], Any]) -> list[str]:
    """The names of the kernels that the GPU ran; skips where the profiler sees none of any program."""
    call()  # Triton compiles, and lazily loaded code is loaded
    torch.cuda.synchronize()
    profiler = torch.profiler
    with profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
    ) as profile:
        call()
        torch.ones(8, device="cuda").exp_()  # seen, whatever `call` does
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    names = [str(event.name) for event in profile.events() if event.device_type == device]
    if not names:
        pytest.skip("the profiler sees no kernel at all: CUPTI is missing, or may not be used here")
    return names


def matching(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if re.search(pattern, name)]


# Attention by anybody else: torch's own copies of flash attention and of others, and SageAttention's Triton.
FALLBACKS = r"(?i)pytorch_flash|fmha_|cudnn.*(sdpa|flash|fprop)|softmax|_attn_fwd|attn_fwd_inner"
