"""The layers' weights on the host: one arena, each layer packed in one run of it, pinned as far as allowed.

A parameter becomes a view of the arena, so its bytes exist once; the model's own modules go on seeing ordinary
CPU parameters. Weights are read-only here: nothing is ever copied back from the device.
"""

from __future__ import annotations

import dataclasses
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .device import Buffer
from .errors import LayerError
from .layout import Packer, Piece, Strided, UnpackableError, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from .device import Device
    from .layout import Held, Owner
    from .pins import PinBudget


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One tensor of a layer."""

    name: str
    owners: tuple[Owner, ...]
    parameter: bool
    piece: Piece | None
    """None in a layer that could not be packed."""
    host: Tensor
    """What the modules see while the layer does not run."""

    def bind(self, tensor: Tensor) -> None:
        for owner in self.owners:
            owner.table[owner.name] = tensor

    def as_seen(self, tensor: Tensor) -> Tensor:
        """The tensor as the modules expect it: a parameter if it was one, with what had been hung on it."""
        if not self.parameter:
            return tensor
        parameter = nn.Parameter(tensor, requires_grad=False)
        parameter.__dict__.update(self.host.__dict__)
        return parameter


@dataclass(eq=False, kw_only=True)
class HostLayer:
    index: int
    name: str
    nbytes: int
    """On the device, packed; of its tensors when it could not be packed."""
    entries: tuple[Entry, ...]
    buffer: Buffer | None
    """None: not packed."""
    why_loose: str = ""
    pinned: bool = False
    originals: dict[str, Tensor] = field(default_factory=dict)
    """Of rewritten tensors."""

    def views(self, buffer: Buffer) -> list[Tensor]:
        """The layer's tensors in a buffer that it was copied to."""
        with torch.inference_mode(False), torch.no_grad():
            return [e.as_seen(e.piece.view(buffer.flat)) for e in self.entries if e.piece is not None]

    def moved(self, device: torch.device) -> list[Tensor]:
        """The layer's tensors on a device, one by one: for one that is not packed."""
        with torch.inference_mode(False), torch.no_grad():
            return [e.as_seen(e.host.detach().to(device)) for e in self.entries]

    def bind(self, views: Sequence[Tensor]) -> None:
        for entry, tensor in zip(self.entries, views, strict=True):
            entry.bind(tensor)

    def unbind(self) -> None:
        for entry in self.entries:
            entry.bind(entry.host)


class HostStore:
    """Takes over the weights of `layers`, in place; leaves them where they are with `pack=False`."""

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str], *, pack: bool = True) -> None:
        found = [tensors(layer) for layer in layers]
        _refuse_meta(found, names)
        plans = [_plan(held) if pack else _Plan(pieces=(), nbytes=0, why_loose="") for held in found]
        arena = _Arena(sum(_pages(plan.nbytes) for plan in plans))
        taken: list[HostLayer] = []
        for i, (name, plan) in enumerate(zip(names, plans, strict=True)):
            taken.append(_take_over(i, name, found[i], plan, arena if pack else None))
            found[i] = []  # or tensors that had to be replaced would all be in memory twice until the end
        self.layers = tuple(taken)
        self.key: Hashable | None = None

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def pinned_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers if layer.pinned)

    def pin(self, device: Device, pins: PinBudget, wanted: Sequence[int]) -> list[str]:
        """Pin these, the first first; the names of those for which there was no room, or that were refused."""
        refused = []
        for index in wanted:
            layer = self.layers[index]
            if layer.pinned or layer.buffer is None or not layer.nbytes:
                continue
            if not pins.take(layer.buffer.nbytes):
                refused.append(layer.name)
                continue
            layer.pinned = device.pin(layer.buffer)
            if not layer.pinned:
                pins.give(layer.buffer.nbytes)
                refused.append(layer.name)
        return refused

    def unpin(self, device: Device, pins: PinBudget) -> None:
        """Only when no copy reads from here any more."""
        for layer in self.layers:
            if layer.pinned and layer.buffer is not None:
                device.unpin(layer.buffer)
                pins.give(layer.buffer.nbytes)
                layer.pinned = False

    def move(self, device: torch.device) -> None:
        """Everything to a device, one tensor after the other, so that none is anywhere twice (unified memory)."""
        with torch.inference_mode(False), torch.no_grad():
            for layer in self.layers:
                entries = []
                for entry in layer.entries:
                    there = entry.as_seen(entry.host.detach().to(device))
                    entry.bind(there)
                    entries.append(dataclasses.replace(entry, host=there))
                layer.entries = tuple(entries)

    # -- rewriting --------------------------------------------------------------------------------
    def changes(
        self, layer: HostLayer, change: Callable[[int, str, Tensor], Tensor | None]
    ) -> dict[str, Tensor]:
        """What `change` makes of a layer's original tensors; nothing is written yet."""
        made = {}
        for entry in layer.entries:
            original = layer.originals.get(entry.name, entry.host)
            new = change(layer.index, entry.name, original.detach())
            if new is None:
                continue
            if new.shape != original.shape:
                raise LayerError(
                    f"{layer.name}.{entry.name}: the new weights have shape {tuple(new.shape)}, "
                    f"the old {tuple(original.shape)}"
                )
            made[entry.name] = new
        return made

    def write(self, layer: HostLayer, new: dict[str, Tensor]) -> None:
        """The layer's tensors become these, and the originals where there is none. No copy may be reading them."""
        with torch.inference_mode(False), torch.no_grad():
            for entry in layer.entries:
                original = layer.originals.get(entry.name)
                if entry.name in new:
                    if original is None:
                        layer.originals[entry.name] = entry.host.detach().clone()
                    self._set(layer, entry, new[entry.name])
                elif original is not None:
                    self._set(layer, entry, original)
                    del layer.originals[entry.name]

    def _set(self, layer: HostLayer, entry: Entry, tensor: Tensor) -> None:
        piece, host = entry.piece, entry.host.detach()
        if layer.buffer is not None and (
            isinstance(piece, Strided) or (piece and type(tensor) is type(host))
        ):
            piece.fill(layer.buffer.flat, tensor)
        else:
            host.copy_(tensor)  # a subclass knows how to take over plain numbers, or raises


@dataclass(frozen=True, kw_only=True)
class _Plan:
    pieces: tuple[Piece, ...]
    nbytes: int
    why_loose: str


class _Arena:
    """Anonymous memory: a page costs nothing until it is written, and goes with the last view of it."""

    def __init__(self, nbytes: int) -> None:
        size = max(nbytes, mmap.PAGESIZE)
        # Private, where the system knows the difference: shared memory would count against /dev/shm.
        kinds = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        with torch.inference_mode(False):
            self._bytes = torch.frombuffer(mmap.mmap(-1, size, **kinds), dtype=torch.uint8)
        self._used = 0

    def take(self, nbytes: int, label: str) -> Buffer:
        """A run of whole pages, so that each can be pinned by itself."""
        begin = self._used
        self._used += _pages(nbytes)
        with torch.inference_mode(False):
            return Buffer(self._bytes[begin : begin + nbytes], label)


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _plan(held: Sequence[Held]) -> _Plan:
    packer = Packer()
    pieces = []
    for one in held:
        try:
            pieces.append(packer.place(one.tensor))
        except UnpackableError as e:
            return _Plan(pieces=(), nbytes=0, why_loose=f"{one.name}: {e}")
    return _Plan(pieces=tuple(pieces), nbytes=packer.nbytes, why_loose="")


def _take_over(index: int, name: str, held: Sequence[Held], plan: _Plan, arena: _Arena | None) -> HostLayer:
    why = plan.why_loose
    if arena is not None and not why:
        buffer = arena.take(plan.nbytes, name)
        try:
            entries = _packed(held, plan, buffer)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as e:  # a subclass's own code
            why = f"{type(e).__name__}: {e}"
        else:
            for entry in entries:
                entry.bind(entry.host)
            return HostLayer(index=index, name=name, nbytes=plan.nbytes, entries=entries, buffer=buffer)
    entries = tuple(
        Entry(name=h.name, owners=tuple(h.owners), parameter=h.parameter, piece=None, host=h.tensor)
        for h in held
    )
    size = sum(h.tensor.numel() * h.tensor.element_size() for h in held)
    return HostLayer(index=index, name=name, nbytes=size, entries=entries, buffer=None, why_loose=why)


def _packed(held: Sequence[Held], plan: _Plan, buffer: Buffer) -> tuple[Entry, ...]:
    with torch.inference_mode(False), torch.no_grad():
        views = []
        for one, piece in zip(held, plan.pieces, strict=True):
            piece.fill(buffer.flat, one.tensor)
            views.append(piece.view(buffer.flat))
        return tuple(
            Entry(
                name=one.name,
                owners=tuple(one.owners),
                parameter=one.parameter,
                piece=piece,
                host=_moved_in(one, view),
            )
            for one, piece, view in zip(held, plan.pieces, views, strict=True)
        )


def _moved_in(held: Held, view: Tensor) -> Tensor:
    """The same object with its bytes in the arena where torch allows it: others may hold it too.

    A tensor born in inference mode must be another object: given other data it would be neither an inference
    tensor nor a normal one, and fail at its next use ("do not track version counter").
    """
    tensor = held.tensor
    if not tensor.is_inference() and type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
        tensor.data = view
        return tensor
    if not held.parameter:
        return view
    parameter = nn.Parameter(view, requires_grad=tensor.requires_grad)
    parameter.__dict__.update(tensor.__dict__)
    return parameter


def _refuse_meta(found: Sequence[Sequence[Held]], names: Sequence[str]) -> None:
    for name, held in zip(names, found, strict=True):
        for one in held:
            if one.tensor.device.type == "meta":
                raise LayerError(f"{name}.{one.name} is on the meta device: load the weights first")
