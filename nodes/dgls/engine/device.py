"""What the engine asks of a device: memory, one copy stream beside the compute stream, events, clocks."""

from __future__ import annotations

import abc
import contextlib
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor


class Stream(enum.Enum):
    HOST = "host"
    """The thread that runs the model: a wait on it blocks that thread."""
    COMPUTE = "compute"
    """The caller's current stream."""
    COPY = "copy"
    """The engine's own."""


class Wait(enum.Enum):
    """Every place where one stream waits for another; a test takes each away in turn and must see it missed."""

    SLOT_FREE = "a copy into a slot waits until the layer that was in it has run"
    SLOT_READY = "a layer waits until its slot has been filled"
    SLOT_DROP = "a slot's memory goes back to the allocator after the copies into it"
    RESIDENT_FREE = "a copy into a resident's memory waits for the computes that used this memory before"
    RESIDENT_READY = "a resident layer waits until it has arrived"
    RESIDENT_DROP = "a resident's memory goes back to the allocator after the copy into it"
    STAGING_FREE = "the host writes into a staging buffer after the copy out of it"
    STAGING_DROP = "a staging buffer is given up after the copies out of it"
    REWRITE = "the host rewrites weights after the copies out of them"
    UNPIN = "host memory is unpinned after the copies out of it"


@dataclass(eq=False)
class Buffer:
    """A flat run of bytes, on the device or on the host. Equal only to itself."""

    flat: Tensor
    label: str

    @property
    def nbytes(self) -> int:
        return self.flat.numel()


class Device(abc.ABC):
    """The streams are ordered among each other by events only, so that a log of these calls can be checked."""

    name: str
    torch_device: torch.device
    overlaps = True
    """Whether copies run beside computes."""
    stages = True
    """Whether copies from memory that is not pinned should go through some that is."""

    @abc.abstractmethod
    def allocate(self, nbytes: int, label: str) -> Buffer:
        """Device memory, ordered on the compute stream; raises OutOfDeviceMemoryError."""

    @abc.abstractmethod
    def free(self, buffer: Buffer) -> None:
        """The buffer's memory may be reused by the compute stream from now on, without another word."""

    @abc.abstractmethod
    def event(self, *, timed: bool = False) -> Any: ...

    @abc.abstractmethod
    def record(self, event: Any, stream: Stream) -> None: ...

    @abc.abstractmethod
    def wait(self, stream: Stream, event: Any, why: Wait) -> None:
        """`stream` goes no further until all that was before the event's last `record` is done."""

    @abc.abstractmethod
    def done(self, event: Any) -> bool:
        """Whether it has passed already."""

    @abc.abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Between two timed events; waits on the host until both have passed."""

    @abc.abstractmethod
    def copy(self, to: Buffer, source: Buffer, to_offset: int, source_offset: int, nbytes: int) -> None:
        """Enqueue on the copy stream."""

    @abc.abstractmethod
    def pin(self, buffer: Buffer) -> bool:
        """Make host memory readable by the device's copy engine; False if the system refuses."""

    @abc.abstractmethod
    def unpin(self, buffer: Buffer) -> None: ...

    def free_bytes(self) -> int | None:
        """Of the device; None when there is no telling."""
        return None

    # What follows changes nothing on a real device; the recording one writes it down.
    def host_write(self, buffer: Buffer) -> None:  # noqa: B027
        """The host has the right to write into a host buffer, and now does."""

    def drop_host(self, buffer: Buffer) -> None:  # noqa: B027
        """A host buffer is given up."""

    @contextlib.contextmanager
    def computing(self, layer: int, reads: Sequence[Buffer]) -> Iterator[None]:  # noqa: ARG002
        """Around the forward of a layer: what it enqueues on the compute stream reads these."""
        yield
