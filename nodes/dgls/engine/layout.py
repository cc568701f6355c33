"""Where each tensor of a layer lies in one flat buffer, and how to see it there again.

A tensor subclass (a quantised weight) that can be taken apart, by torch's `__tensor_flatten__`, is packed as its
parts. Strides are kept where they leave no gaps, since kernels are chosen by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

ALIGN = 256
"""What a copy engine and every kernel's vector loads are content with."""


class UnpackableError(Exception):
    """Why a tensor cannot lie in a flat buffer."""


@dataclass(frozen=True, kw_only=True)
class Strided:
    """A plain tensor at an offset."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        piece = flat[self.offset : self.offset + self.nbytes].view(self.dtype)
        return piece.as_strided(self.shape, self.stride)

    def fill(self, flat: Tensor, tensor: Tensor) -> None:
        self.view(flat).copy_(tensor.detach())


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A subclass made of parts."""

    kind: Any
    parts: dict[str, Strided | Composed]
    context: Any
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        parts = {name: part.view(flat) for name, part in self.parts.items()}
        made: Tensor = self.kind.__tensor_unflatten__(parts, self.context, self.shape, self.stride)
        return made

    def fill(self, flat: Tensor, tensor: Tensor) -> None:
        for name, part in self.parts.items():
            part.fill(flat, getattr(tensor, name))


Piece = Strided | Composed


class Packer:
    """Hands out offsets, one tensor after the other."""

    def __init__(self) -> None:
        self.nbytes = 0

    def place(self, tensor: Tensor) -> Piece:
        if tensor.device.type == "meta":
            raise UnpackableError("it is on the meta device, without data")
        if type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
            return self._strided(tensor)
        if not (hasattr(tensor, "__tensor_flatten__") and hasattr(type(tensor), "__tensor_unflatten__")):
            raise UnpackableError(f"{type(tensor).__name__} cannot be taken apart (no __tensor_flatten__)")
        names, context = tensor.__tensor_flatten__()
        return Composed(
            kind=type(tensor),
            parts={name: self.place(getattr(tensor, name)) for name in names},
            context=context,
            shape=tensor.shape,
            stride=tensor.stride(),
        )

    def _strided(self, tensor: Tensor) -> Strided:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise UnpackableError(f"a {tensor.dtype} tensor of layout {tensor.layout}")
        shape = tuple(tensor.shape)
        stride = tuple(tensor.stride()) if _gapless(tensor) else _contiguous(shape)
        nbytes = tensor.numel() * tensor.element_size()
        offset = self.nbytes
        self.nbytes += -(-nbytes // ALIGN) * ALIGN
        return Strided(offset=offset, nbytes=nbytes, dtype=tensor.dtype, shape=shape, stride=stride)


def _gapless(tensor: Tensor) -> bool:
    """Each element of its storage's span once: contiguous in some order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A module's table of parameters or of buffers, and a name in it."""

    table: dict[str, Tensor | None]
    name: str


@dataclass(eq=False, kw_only=True)
class Held:
    """A tensor of a layer, and everyone who has it."""

    name: str
    tensor: Tensor
    owners: list[Owner]
    parameter: bool


def tensors(layer: nn.Module) -> list[Held]:
    """Parameters and buffers of the layer and all its submodules; one that is shared comes once."""
    found: dict[int, Held] = {}
    for name, tensor, owner, parameter in _walk(layer):
        held = found.get(id(tensor))
        if held is None:
            found[id(tensor)] = Held(name=name, tensor=tensor, owners=[owner], parameter=parameter)
        else:
            held.owners.append(owner)
    return list(found.values())


def _walk(layer: nn.Module) -> Iterator[tuple[str, Tensor, Owner, bool]]:
    for prefix, module in layer.named_modules():
        for table, parameter in ((module._parameters, True), (module._buffers, False)):  # noqa: SLF001
            for name, tensor in table.items():
                if tensor is not None:
                    full = f"{prefix}.{name}" if prefix else name
                    yield full, tensor, Owner(table=table, name=name), parameter
