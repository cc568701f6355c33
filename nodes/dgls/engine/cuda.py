"""An NVIDIA GPU: one copy stream of our own beside whatever stream the caller computes on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from .device import Buffer, Device, Stream
from .errors import CopyError, OutOfDeviceMemoryError

if TYPE_CHECKING:
    from .device import Wait


_cuda: Any = torch.cuda  # parts of it have no types


class CudaDevice(Device):
    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.torch_device = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(index)
        self.copy_stream: Any = _cuda.Stream(self.torch_device)

    def allocate(self, nbytes: int, label: str) -> Buffer:
        try:
            flat = self._empty(nbytes)
        except torch.OutOfMemoryError:
            # What the caching allocator keeps for later may be just what is missing.
            torch.cuda.empty_cache()
            try:
                flat = self._empty(nbytes)
            except torch.OutOfMemoryError as e:
                raise OutOfDeviceMemoryError(
                    f"{self.name} has no {nbytes / 1e6:,.1f} MB left for {label} "
                    f"({(self.free_bytes() or 0) / 1e6:,.1f} MB are free)",
                    needed=nbytes,
                ) from e
        return Buffer(flat, label)

    def _empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def free(self, buffer: Buffer) -> None:
        pass  # torch's allocator takes it back with its last reference, in the order of the compute stream

    def event(self, *, timed: bool = False) -> Any:
        return _cuda.Event(enable_timing=timed)

    def record(self, event: Any, stream: Stream) -> None:
        event.record(self._stream(stream))

    def wait(self, stream: Stream, event: Any, why: Wait) -> None:  # noqa: ARG002
        if stream is Stream.HOST:
            event.synchronize()
        else:
            self._stream(stream).wait_event(event)

    def done(self, event: Any) -> bool:
        return bool(event.query())

    def seconds(self, start: Any, end: Any) -> float:
        start.synchronize()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def copy(self, to: Buffer, source: Buffer, to_offset: int, source_offset: int, nbytes: int) -> None:
        target = to.flat[to_offset : to_offset + nbytes]
        try:
            with torch.cuda.stream(self.copy_stream):
                target.copy_(source.flat[source_offset : source_offset + nbytes], non_blocking=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            raise CopyError(f"copying {source.label} to {to.label} failed: {e}") from e

    def pin(self, buffer: Buffer) -> bool:
        # cudaHostRegister, not pin_memory(): that one rounds up to powers of two, and caches what is given back.
        runtime = _cuda.cudart()
        with torch.cuda.device(self.torch_device):
            code = int(runtime.cudaHostRegister(buffer.flat.data_ptr(), buffer.nbytes, 0))
        if code:
            self._forget_error()
        return code == 0

    def unpin(self, buffer: Buffer) -> None:
        runtime = _cuda.cudart()
        with torch.cuda.device(self.torch_device):
            if int(runtime.cudaHostUnregister(buffer.flat.data_ptr())):
                self._forget_error()

    def _forget_error(self) -> None:
        """CUDA reports the refusal a second time, at the next call: let that be a call of ours."""
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self.torch_device).add_(1)
            torch.cuda.synchronize(self.torch_device)

    def free_bytes(self) -> int | None:
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def _stream(self, stream: Stream) -> Any:
        if stream is Stream.COPY:
            return self.copy_stream
        return torch.cuda.current_stream(self.torch_device)
