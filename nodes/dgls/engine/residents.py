"""The layers that stay: one buffer each, so that they can be given up one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .device import Stream, Wait

if TYPE_CHECKING:
    from .device import Buffer, Device
    from .store import HostLayer, HostStore
    from .transfer import Transfer


class _Resident:
    def __init__(self, layer: HostLayer, buffer: Buffer | None, ready: Any) -> None:
        self.layer, self.buffer, self.ready = layer, buffer, ready
        """`ready`: None once it is known to have arrived."""


class Residents:
    def __init__(self, device: Device, store: HostStore, transfer: Transfer) -> None:
        self._device, self._store, self._transfer = device, store, transfer
        self._held: dict[int, _Resident] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._held

    def indices(self) -> frozenset[int]:
        return frozenset(self._held)

    @property
    def nbytes(self) -> int:
        return sum(resident.layer.nbytes for resident in self._held.values())

    def hold(self, index: int) -> None:
        """Bring a layer here to stay. Raises OutOfDeviceMemoryError or CopyError, and then nothing has changed."""
        layer = self._store.layers[index]
        if layer.buffer is None:
            layer.bind(layer.moved(self._device.torch_device))
            self._held[index] = _Resident(layer, None, None)
            return
        device = self._device
        buffer = device.allocate(layer.nbytes, f"resident {layer.name}")
        resident = _Resident(layer, buffer, device.event())
        try:
            self._fill(resident)
            layer.bind(layer.views(buffer))
        except BaseException:
            self._free(resident)
            raise
        self._held[index] = resident

    def arrived(self, index: int) -> Buffer | None:
        """Make the compute stream wait until the layer is here; its buffer, None for one that was not packed."""
        resident = self._held[index]
        if resident.ready is not None:
            self._device.wait(Stream.COMPUTE, resident.ready, Wait.RESIDENT_READY)
            # Only when it has passed is the wait needless on whichever stream the caller computes next time.
            if self._device.done(resident.ready):
                resident.ready = None
        return resident.buffer

    def refresh(self, index: int) -> None:
        """Its host copy has changed."""
        resident = self._held[index]
        if resident.buffer is None:
            self.drop(index)
            self.hold(index)
            return
        if resident.ready is None:
            resident.ready = self._device.event()
        self._fill(resident)

    def drop(self, index: int) -> int:
        """Give a layer up; bytes freed."""
        resident = self._held.pop(index)
        resident.layer.unbind()
        self._free(resident)
        return resident.layer.nbytes

    def close(self) -> int:
        return sum(self.drop(index) for index in list(self._held))

    def _fill(self, resident: _Resident) -> None:
        device, buffer = self._device, resident.buffer
        assert buffer is not None
        # Fresh memory may still be in use by what had it before; and a refreshed layer by its last forward.
        used = device.event()
        device.record(used, Stream.COMPUTE)
        device.wait(Stream.COPY, used, Wait.RESIDENT_FREE)
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._transfer.send(resident.layer, buffer)
        finally:
            device.record(resident.ready, Stream.COPY)

    def _free(self, resident: _Resident) -> None:
        if resident.buffer is not None:
            if resident.ready is not None:
                self._device.wait(Stream.COMPUTE, resident.ready, Wait.RESIDENT_DROP)
            self._device.free(resident.buffer)
