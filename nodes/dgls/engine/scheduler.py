"""The ring: each layer that goes is followed by the copy of one that comes, on and on across passes.

Two waits keep it right. A copy into a slot waits until the layer that was in it has run; a layer waits until its
slot has been filled. Both are waits of one stream for another: the host goes on, and asks for copies as far ahead
as there are slots. After every layer, hit or miss, it asks for the next: only so is there always one under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .device import Stream, Wait
from .errors import CopyError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .device import Device
    from .order import Order
    from .pool import Slot, SlotPool
    from .store import HostStore
    from .trace import Trace
    from .transfer import Transfer


class Scheduler:
    """Works on packed layers; `ring` are those that go through the slots."""

    def __init__(
        self,
        device: Device,
        store: HostStore,
        pool: SlotPool,
        transfer: Transfer,
        order: Order,
        ring: Collection[int],
    ) -> None:
        self._device, self._store, self._pool, self._transfer = device, store, pool, transfer
        self._order, self._ring = order, frozenset(ring)
        self._at: dict[int, Slot] = {}
        for slot in pool.slots:  # what an earlier plan has brought may stay
            if slot.layer in self._ring:
                self._at[slot.layer] = slot
            else:
                slot.layer = None
        self.trace: Trace | None = None
        self.hits = 0
        self.misses = 0
        self.failures = 0
        """Prefetches that failed; the layer's own visit tries again."""

    def enter(self, layer: int) -> Slot:
        """The slot in which the layer will be when the compute stream gets there. Pair with `leave`."""
        slot = self._at.get(layer)
        if slot is None:
            self.misses += 1
            slot = self._victim(layer)
            self._load(layer, slot)
        else:
            self.hits += 1
        self._device.wait(Stream.COMPUTE, slot.ready, Wait.SLOT_READY)
        slot.busy += 1
        return slot

    def leave(self, layer: int, slot: Slot) -> None:
        """All that the layer reads of its slot is enqueued, or will never be."""
        slot.busy -= 1
        self._device.record(slot.free, Stream.COMPUTE)
        self.prefetch(layer)

    def prefetch(self, after: int) -> None:
        """Fill the slots with what is expected after a layer, as far as they are free."""
        count = len(self._pool.slots)
        again = [after] if after in self._ring and self._order.again(after) else []
        wanted = [*again, *self._order.ahead(after, of=self._ring, count=count)][:count]
        staying = set(wanted)
        for layer in wanted:
            if layer in self._at:
                continue
            slot = self._first(layer, lambda s: not s.busy and s.layer not in staying)
            if slot is None:
                return  # in the order of need: nobody overtakes
            try:
                self._load(layer, slot)
            except CopyError:
                self.failures += 1
                return

    def forget(self, layer: int) -> None:
        """What a slot may hold of this layer is no longer true."""
        slot = self._at.pop(layer, None)
        if slot is not None:
            slot.layer = None

    def _first(self, layer: int, fit: Callable[[Slot], bool]) -> Slot | None:
        nbytes = self._store.layers[layer].nbytes
        return next((s for s in self._pool.slots if s.nbytes >= nbytes and fit(s)), None)

    def _victim(self, layer: int) -> Slot:
        """The slot whose layer is needed last."""
        ahead = list(self._order.ahead(layer, of=self._ring, count=len(self._ring)))
        turn = {index: n for n, index in enumerate(ahead)}
        nbytes = self._store.layers[layer].nbytes
        fitting = [s for s in self._pool.slots if s.nbytes >= nbytes and not s.busy]
        if not fitting:
            raise StateError(
                f"{self._store.layers[layer].name} was asked for while all slots are in use: layers that run "
                f"inside one another need a slot each, there are {len(self._pool.slots)}"
            )
        return max(fitting, key=lambda s: len(turn) if s.layer is None else turn.get(s.layer, len(turn)))

    def _load(self, layer: int, slot: Slot) -> None:
        if slot.layer is not None:
            del self._at[slot.layer]
            slot.layer = None
        device = self._device
        device.wait(Stream.COPY, slot.free, Wait.SLOT_FREE)
        begun: Any = self.trace.copy_begins() if self.trace else None
        try:
            self._transfer.send(self._store.layers[layer], slot.buffer)
        finally:
            # Also when it failed halfway: what was enqueued still writes.
            device.record(slot.ready, Stream.COPY)
        if self.trace:
            self.trace.copy_ends(begun, layer, slot)
        slot.layer = layer
        self._at[layer] = slot
