"""Is there an order in which the device may run these operations, and get it wrong? By vector clocks.

Every stream counts its own operations, and knows how far it has seen the others go. A stream learns of another only
through an event that it waits for, and of the host through being told to work at all: what the host enqueues comes
after what the host has done. Two operations on the same buffer, one of them a write, race when the later one's
stream has not seen the earlier one.

Memory that is allocated or freed counts as written by the compute stream: torch's allocator hands it on in that
stream's order, and whoever had it before, or gets it next, may still be at work in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .device import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .device import Buffer
    from .recording import Mark, Operation

Clock = dict[Stream, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Race:
    buffer: Buffer
    earlier: Operation
    later: Operation

    def __str__(self) -> str:
        return f"{self.buffer.label}: [{self.later}] does not wait for [{self.earlier}]"


@dataclass(eq=False)
class _Access:
    operation: Operation
    time: int
    """Of its own stream."""


@dataclass(eq=False)
class _History:
    write: _Access | None = None
    reads: dict[Stream, _Access] = field(default_factory=dict)
    """The last of each stream, since the last write."""


def races(log: Iterable[Operation]) -> list[Race]:
    clocks: dict[Stream, Clock] = {s: dict.fromkeys(Stream, 0) for s in Stream}
    events: dict[Mark, Clock] = {}
    histories: dict[Buffer, _History] = {}
    found: list[Race] = []

    for operation in log:
        stream = operation.stream
        clock = clocks[stream]
        if stream is not Stream.HOST:
            _join(clock, clocks[Stream.HOST])
        clock[stream] += 1
        if operation.event is not None and operation.kind == "record":
            events[operation.event] = dict(clock)
        if operation.event is not None and operation.kind == "wait":
            # An event that was never recorded has passed already, in CUDA too.
            _join(clock, events.get(operation.event, {}))
        for buffer, writes in (
            *((b, False) for b in operation.reads),
            *((b, True) for b in operation.writes),
        ):
            history = histories.setdefault(buffer, _History())
            before = [history.write] if history.write else []
            before += history.reads.values() if writes else ()
            found += [
                Race(buffer=buffer, earlier=access.operation, later=operation)
                for access in before
                if clock[access.operation.stream] < access.time
            ]
            access = _Access(operation, clock[stream])
            if writes:
                history.write, history.reads = access, {}
            else:
                history.reads[stream] = access
    return found


def _join(clock: Clock, other: Clock) -> None:
    for stream, time in other.items():
        clock[stream] = max(clock[stream], time)
