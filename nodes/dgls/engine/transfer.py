"""A layer's way to the device: straight from pinned memory, or through a small pinned staging ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .device import Buffer, Stream, Wait

if TYPE_CHECKING:
    from .device import Device
    from .pins import PinBudget
    from .store import HostLayer

_CHUNK = 16 << 20
"""Large enough for the bus, small enough that the first bytes leave soon."""
_CHUNKS = 3


class Transfer:
    """Enqueues copies; what happens on the way is timed when asked for."""

    def __init__(self, device: Device, pins: PinBudget) -> None:
        self._device, self._pins, self._chunk = device, pins, _CHUNK
        self._staging: _Staging | None = None
        self._refused = False
        self._last: Any = device.event()
        """All copies so far are done."""
        self.copies = 0
        self.nbytes = 0

    def send(self, layer: HostLayer, to: Buffer) -> None:
        """Enqueue the layer's copy; blocks the host only when the layer is not pinned. May raise CopyError."""
        source = layer.buffer
        assert source is not None
        staging = None if layer.pinned else self._ring()
        try:
            if staging is None:
                self._device.copy(to, source, 0, 0, layer.nbytes)
            else:
                staging.send(source, to, layer.nbytes)
        finally:
            self._device.record(self._last, Stream.COPY)
        self.copies += 1
        self.nbytes += layer.nbytes

    def settle(self, why: Wait) -> None:
        """Block the host until every copy so far is done."""
        self._device.wait(Stream.HOST, self._last, why)

    def reserve(self) -> None:
        """Pin the staging ring now, before the layers have taken all that may be pinned."""
        self._ring()

    @property
    def staging_bytes(self) -> int:
        return self._staging.nbytes if self._staging else 0

    @property
    def staging_refused(self) -> bool:
        return self._refused

    def close(self) -> None:
        if self._staging:
            self._staging.close(self._pins)
        self._staging, self._refused = None, False

    def _ring(self) -> _Staging | None:
        """None if even that much is not to be pinned: then the driver copies from pageable memory, and waits."""
        if self._staging is None and not self._refused and self._device.stages:
            nbytes = self._chunk * _CHUNKS
            if self._pins.take(nbytes):
                ring = _Staging(self._device, self._chunk, _CHUNKS)
                if ring.pinned:
                    self._staging = ring
                else:
                    self._pins.give(nbytes)
            self._refused = self._staging is None
        return self._staging


class _Staging:
    def __init__(self, device: Device, chunk: int, count: int) -> None:
        self._device = device
        with torch.inference_mode(False):
            # Of one piece, and page-aligned by itself at this size in glibc's allocator, or pinned as it lies.
            whole = torch.empty(chunk * count, dtype=torch.uint8)
            self._whole = Buffer(whole, "staging")
            self._chunks = [Buffer(whole[n * chunk : (n + 1) * chunk], f"staging {n}") for n in range(count)]
        self._sent: list[Any] = [device.event() for _ in range(count)]
        self._next = 0
        self.pinned = device.pin(self._whole)
        self.nbytes = chunk * count

    def send(self, source: Buffer, to: Buffer, nbytes: int) -> None:
        device, size = self._device, self._chunks[0].nbytes
        for begin in range(0, nbytes, size):
            length = min(size, nbytes - begin)
            n, self._next = self._next, (self._next + 1) % len(self._chunks)
            chunk = self._chunks[n]
            device.wait(Stream.HOST, self._sent[n], Wait.STAGING_FREE)
            device.host_write(chunk)
            chunk.flat[:length].copy_(source.flat[begin : begin + length])
            device.copy(to, chunk, begin, 0, length)
            device.record(self._sent[n], Stream.COPY)

    def close(self, pins: PinBudget) -> None:
        for chunk, sent in zip(self._chunks, self._sent, strict=True):
            self._device.wait(Stream.HOST, sent, Wait.STAGING_DROP)
            self._device.drop_host(chunk)
        self._device.unpin(self._whole)
        pins.give(self.nbytes)
