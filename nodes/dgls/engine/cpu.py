"""The CPU as a device: every copy is done when it is asked for, so all waits are fulfilled already."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .device import Buffer, Device
from .errors import OutOfDeviceMemoryError

if TYPE_CHECKING:
    from .device import Stream, Wait


@dataclass
class Moment:
    at: float = 0.0


class CpuDevice(Device):
    overlaps = False
    stages = False

    def __init__(self) -> None:
        self.name = "CPU"
        self.torch_device = torch.device("cpu")

    def allocate(self, nbytes: int, label: str) -> Buffer:
        try:
            return Buffer(torch.empty(nbytes, dtype=torch.uint8), label)
        except RuntimeError as e:  # what torch's CPU allocator raises
            raise OutOfDeviceMemoryError(
                f"no {nbytes:,} bytes of host memory for {label}", needed=nbytes
            ) from e

    def free(self, buffer: Buffer) -> None:
        pass  # its last reference does that

    def event(self, *, timed: bool = False) -> Moment:  # noqa: ARG002
        return Moment()

    def record(self, event: Moment, stream: Stream) -> None:  # noqa: ARG002
        event.at = time.perf_counter()

    def wait(self, stream: Stream, event: Moment, why: Wait) -> None:
        pass

    def done(self, event: Moment) -> bool:  # noqa: ARG002
        return True

    def seconds(self, start: Moment, end: Moment) -> float:
        return end.at - start.at

    def copy(self, to: Buffer, source: Buffer, to_offset: int, source_offset: int, nbytes: int) -> None:
        to.flat[to_offset : to_offset + nbytes].copy_(source.flat[source_offset : source_offset + nbytes])

    def pin(self, buffer: Buffer) -> bool:  # noqa: ARG002
        return True  # nothing to do, and nothing lost

    def unpin(self, buffer: Buffer) -> None:
        pass
