"""The ring's buffers: allocated once, at fixed addresses, each with its two events and its views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .device import Stream, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .device import Buffer, Device
    from .store import HostLayer


class Slot:
    def __init__(self, device: Device, nbytes: int, label: str) -> None:
        self.buffer: Buffer = device.allocate(nbytes, label)
        self.ready: Any = device.event()
        """The copy into it is done."""
        self.free: Any = device.event()
        """The compute that read it is done; at first: whatever used its memory before."""
        device.record(self.free, Stream.COMPUTE)
        self.layer: int | None = None
        self.busy = 0
        """Forwards that run with it now."""
        self._views: dict[int, list[Tensor]] = {}

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def views(self, layer: HostLayer) -> list[Tensor]:
        """Made once for each layer that ever comes here."""
        found = self._views.get(layer.index)
        if found is None:
            found = self._views[layer.index] = layer.views(self.buffer)
        return found


class SlotPool:
    def __init__(self, device: Device, sizes: Sequence[int]) -> None:
        """All or nothing: raises OutOfDeviceMemoryError and leaves nothing allocated."""
        self._device = device
        self.slots: list[Slot] = []  # the smallest first, so that the first that fits is the right one
        try:
            with torch.inference_mode(False):
                for n, nbytes in enumerate(sorted(sizes)):
                    self.slots.append(Slot(device, nbytes, f"slot {n}"))
        except Exception:
            self.close()
            raise

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(slot.nbytes for slot in self.slots)

    @property
    def nbytes(self) -> int:
        return sum(slot.nbytes for slot in self.slots)

    def close(self) -> None:
        """Give the memory back, in the order of the compute stream, which first waits for copies under way."""
        for slot in self.slots:
            self._device.wait(Stream.COMPUTE, slot.ready, Wait.SLOT_DROP)
            self._device.free(slot.buffer)
        self.slots = []
