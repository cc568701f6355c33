"""A device made of a log: runs on the CPU, keeps virtual time, and writes down every operation in its order.

`hazards.races` reads the log. The memory is real, so that results are too; with `late=True` a copy moves its bytes
only when somebody has waited for it, which is when a GPU may do it at the latest: whoever forgets to wait reads
old bytes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from .device import Buffer, Device, Stream, Wait
from .errors import CopyError, OutOfDeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Kind = Literal["allocate", "free", "record", "wait", "copy", "compute", "host write", "host drop"]


@dataclass(eq=False)
class Mark:
    """An event."""

    at: float = 0.0
    copies: int = 0
    """How many copies were enqueued before it, if it was recorded on the copy stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    kind: Kind
    stream: Stream
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    event: Mark | None = None
    why: Wait | None = None
    layer: int | None = None
    start: float = 0.0
    end: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.kind} on {self.stream.value}"]
        parts += [f"layer {self.layer}"] if self.layer is not None else []
        parts += [f"reads {b.label}" for b in self.reads] + [f"writes {b.label}" for b in self.writes]
        parts += [f"({self.why.name})"] if self.why else []
        return ", ".join(parts)


@dataclass(kw_only=True)
class _Pending:
    to: torch.Tensor
    source: torch.Tensor


@dataclass(kw_only=True)
class Faults:
    """What goes wrong, and when."""

    capacity: int | None = None
    """Bytes of device memory."""
    pin_capacity: int | None = None
    copies_fail: set[int] = field(default_factory=set)
    """These copies, counted from 0, raise."""


class RecordingDevice(Device):
    """`compute_seconds` by layer and `bytes_per_second` drive the virtual clocks; the host takes no time."""

    def __init__(
        self,
        *,
        drop: Wait | None = None,
        late: bool = False,
        compute_seconds: Mapping[int, float] | None = None,
        bytes_per_second: float = 1e9,
        latency: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.name = "recording"
        self.torch_device = torch.device("cpu")
        self.log: list[Operation] = []
        self.allocated = 0
        self.pinned = 0
        self.copies = 0
        self.faults = faults or Faults()
        self._drop, self._late = drop, late
        self._compute_seconds = compute_seconds or {}
        self._bytes_per_second, self._latency = bytes_per_second, latency
        self._now = dict.fromkeys(Stream, 0.0)
        self._pending: deque[_Pending] = deque()
        self._copied = 0

    # -- memory -----------------------------------------------------------------------------------
    def allocate(self, nbytes: int, label: str) -> Buffer:
        capacity = self.faults.capacity
        if capacity is not None and self.allocated + nbytes > capacity:
            raise OutOfDeviceMemoryError(f"no {nbytes:,} bytes left for {label}", needed=nbytes)
        self.allocated += nbytes
        # Poisoned: whoever reads before anything was copied here gets nonsense, not zeros.
        buffer = Buffer(torch.full((nbytes,), 0x7F, dtype=torch.uint8), label)
        self._write("allocate", Stream.COMPUTE, writes=(buffer,))
        return buffer

    def free(self, buffer: Buffer) -> None:
        self.allocated -= buffer.nbytes
        self._write("free", Stream.COMPUTE, writes=(buffer,))

    def pin(self, buffer: Buffer) -> bool:
        capacity = self.faults.pin_capacity
        if capacity is not None and self.pinned + buffer.nbytes > capacity:
            return False
        self.pinned += buffer.nbytes
        return True

    def unpin(self, buffer: Buffer) -> None:
        self.pinned -= buffer.nbytes
        self._write("host drop", Stream.HOST, writes=(buffer,))

    # -- order ------------------------------------------------------------------------------------
    def event(self, *, timed: bool = False) -> Mark:  # noqa: ARG002
        return Mark()

    def record(self, event: Mark, stream: Stream) -> None:
        event.at = self._now[stream]
        event.copies = self.copies if stream is Stream.COPY else 0
        self._write("record", stream, event=event)

    def wait(self, stream: Stream, event: Mark, why: Wait) -> None:
        if why is self._drop:
            return
        self._now[stream] = max(self._now[stream], event.at)
        if stream is not Stream.COPY:
            self._copy_until(event.copies)
        self._write("wait", stream, event=event, why=why)

    def done(self, event: Mark) -> bool:
        if self._late:
            return False
        self._write("wait", Stream.HOST, event=event)  # the host has seen it: all it enqueues now comes after
        return True

    def seconds(self, start: Mark, end: Mark) -> float:
        return end.at - start.at

    # -- work -------------------------------------------------------------------------------------
    def copy(self, to: Buffer, source: Buffer, to_offset: int, source_offset: int, nbytes: int) -> None:
        self.copies += 1
        if self.copies - 1 in self.faults.copies_fail:
            self._pending.append(_Pending(to=to.flat[:0], source=source.flat[:0]))
            raise CopyError(f"copying {source.label} to {to.label} failed: injected")
        start = self._now[Stream.COPY]
        self._now[Stream.COPY] += self._latency + nbytes / self._bytes_per_second
        self._write("copy", Stream.COPY, reads=(source,), writes=(to,), start=start)
        self._pending.append(
            _Pending(
                to=to.flat[to_offset : to_offset + nbytes],
                source=source.flat[source_offset : source_offset + nbytes],
            )
        )
        if not self._late:
            self._copy_until(self.copies)

    @contextlib.contextmanager
    def computing(self, layer: int, reads: Sequence[Buffer]) -> Iterator[None]:
        # Before the forward, and even if it raises: part of it may be under way by then.
        start = self._now[Stream.COMPUTE]
        self._now[Stream.COMPUTE] += self._compute_seconds.get(layer, 0.0)
        self._write("compute", Stream.COMPUTE, reads=tuple(reads), layer=layer, start=start)
        yield

    def host_write(self, buffer: Buffer) -> None:
        self._write("host write", Stream.HOST, writes=(buffer,))

    def drop_host(self, buffer: Buffer) -> None:
        self._write("host drop", Stream.HOST, writes=(buffer,))

    def _copy_until(self, count: int) -> None:
        while self._copied < count:
            pending = self._pending.popleft()
            pending.to.copy_(pending.source)
            self._copied += 1

    def _write(
        self,
        kind: Kind,
        stream: Stream,
        *,
        reads: tuple[Buffer, ...] = (),
        writes: tuple[Buffer, ...] = (),
        event: Mark | None = None,
        why: Wait | None = None,
        layer: int | None = None,
        start: float | None = None,
    ) -> None:
        end = self._now[stream]
        self.log.append(
            Operation(
                kind=kind,
                stream=stream,
                reads=reads,
                writes=writes,
                event=event,
                why=why,
                layer=layer,
                start=end if start is None else start,
                end=end,
            )
        )
