"""Stacks of blocks with the shapes of Flux and Wan, and weights that cost no time to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = 512
"""Tokens of the prompt."""
_STORED = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    dim: int
    heads: int
    ffn: int
    doubles: int
    singles: int
    """Flux; all of its blocks for Wan."""
    text: int = TEXT


FLUX = Shape(name="flux-like", dim=3072, heads=24, ffn=12288, doubles=19, singles=38)
WAN = Shape(name="wan-like", dim=5120, heads=40, ffn=13824, doubles=0, singles=40)
SMALL_FLUX = Shape(name="flux-like, small", dim=256, heads=4, ffn=1024, doubles=3, singles=6, text=16)
SMALL_WAN = Shape(name="wan-like, small", dim=256, heads=4, ffn=704, doubles=0, singles=8, text=16)


class Stored(nn.Module):
    """A linear layer whose weights may be stored in fewer bits than it computes in, as ComfyUI's are."""

    def __init__(self, inner: int, outer: int, dtype: torch.dtype, compute: torch.dtype) -> None:
        super().__init__()
        self.compute = compute
        self.weight = nn.Parameter(torch.empty(outer, inner, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outer, dtype=compute), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(self.compute), self.bias)


def _attend(heads: int, *qkv: Tensor) -> Tensor:
    q, k, v = (t.reshape(*t.shape[:-1], heads, -1).transpose(-2, -3) for t in qkv)
    return functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


def _normed(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


class FluxDouble(nn.Module):
    """Text and image each have weights of their own, and meet in the attention."""

    def __init__(self, shape: Shape, linear: Callable[[int, int], Stored]) -> None:
        super().__init__()
        dim, self.heads, self.text = shape.dim, shape.heads, shape.text
        self.mod = nn.ModuleList([linear(dim, 6 * dim) for _ in range(2)])
        self.qkv = nn.ModuleList([linear(dim, 3 * dim) for _ in range(2)])
        self.out = nn.ModuleList([linear(dim, dim) for _ in range(2)])
        self.up = nn.ModuleList([linear(dim, shape.ffn) for _ in range(2)])
        self.down = nn.ModuleList([linear(shape.ffn, dim) for _ in range(2)])

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        streams = [x[:, : self.text], x[:, self.text :]]
        mods = [mod(vec).unsqueeze(1).chunk(6, dim=-1) for mod in self.mod]
        qkv = [self.qkv[n](_normed(s) * (1 + mods[n][0]) + mods[n][1]) for n, s in enumerate(streams)]
        joined = _attend(self.heads, *torch.cat(qkv, dim=1).chunk(3, dim=-1))
        parts = [joined[:, : self.text], joined[:, self.text :]]
        for n, part in enumerate(parts):
            streams[n] = streams[n] + mods[n][2] * self.out[n](part)
            hidden = self.up[n](_normed(streams[n]) * (1 + mods[n][3]) + mods[n][4])
            streams[n] = streams[n] + mods[n][5] * self.down[n](functional.gelu(hidden, approximate="tanh"))
        return torch.cat(streams, dim=1)


class FluxSingle(nn.Module):
    def __init__(self, shape: Shape, linear: Callable[[int, int], Stored]) -> None:
        super().__init__()
        dim, self.heads = shape.dim, shape.heads
        self.sizes = (3 * dim, shape.ffn)
        self.mod = linear(dim, 3 * dim)
        self.first = linear(dim, sum(self.sizes))
        self.last = linear(dim + shape.ffn, dim)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        scale, shift, gate = self.mod(vec).unsqueeze(1).chunk(3, dim=-1)
        qkv, hidden = self.first(_normed(x) * (1 + scale) + shift).split(self.sizes, dim=-1)
        attended = _attend(self.heads, *qkv.chunk(3, dim=-1))
        both = torch.cat((attended, functional.gelu(hidden, approximate="tanh")), dim=-1)
        done: Tensor = x + gate * self.last(both)
        return done


class WanBlock(nn.Module):
    def __init__(self, shape: Shape, linear: Callable[[int, int], Stored]) -> None:
        super().__init__()
        dim, self.heads, self.text = shape.dim, shape.heads, shape.text
        self.self_qkv = linear(dim, 3 * dim)
        self.self_out = linear(dim, dim)
        self.cross_q = linear(dim, dim)
        self.cross_kv = linear(dim, 2 * dim)
        self.cross_out = linear(dim, dim)
        self.up = linear(dim, shape.ffn)
        self.down = linear(shape.ffn, dim)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        context = vec.unsqueeze(1).expand(-1, self.text, -1)
        x = x + self.self_out(_attend(self.heads, *self.self_qkv(_normed(x)).chunk(3, dim=-1)))
        keys, values = self.cross_kv(context).chunk(2, dim=-1)
        x = x + self.cross_out(_attend(self.heads, self.cross_q(_normed(x)), keys, values))
        done: Tensor = x + self.down(functional.gelu(self.up(_normed(x)), approximate="tanh"))
        return done


@dataclass(frozen=True, kw_only=True)
class Stack:
    shape: Shape
    dtype: str
    blocks: nn.ModuleList

    @property
    def nbytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.blocks.parameters())

    def inputs(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(tokens)
        dtype = torch.float32 if self.dtype == "fp32" else torch.bfloat16
        x = torch.randn(1, tokens, self.shape.dim, generator=generator)
        vec = torch.randn(1, self.shape.dim, generator=generator)
        return x.to(device, dtype), vec.to(device, dtype)


def make(shape: Shape, dtype: str) -> Stack:
    """On the CPU. Each kind of tensor is drawn once; the blocks get it rolled by their number, so that all differ."""
    stored, compute = _STORED[dtype], torch.float32 if dtype == "fp32" else torch.bfloat16
    drawn: dict[tuple[int, ...], Tensor] = {}

    def linear(inner: int, outer: int) -> Stored:
        return Stored(inner, outer, stored, compute)

    kinds: list[type[nn.Module]] = [FluxDouble] * shape.doubles
    kinds += [FluxSingle if shape.doubles else WanBlock] * shape.singles
    blocks = nn.ModuleList()
    generator = torch.Generator().manual_seed(0)
    for number, kind in enumerate(kinds):
        block = kind(shape, linear)
        for tensor in block.parameters():
            size = tuple(tensor.shape)
            if size not in drawn:
                drawn[size] = (torch.randn(size, generator=generator) * 0.02).to(tensor.dtype)
            source = drawn[size].view(torch.uint8) if tensor.element_size() == 1 else drawn[size]
            target = tensor.data.view(torch.uint8) if tensor.element_size() == 1 else tensor.data
            target.copy_(source.roll(number, 0))
        blocks.append(block)
    return Stack(shape=shape, dtype=dtype, blocks=blocks)
