"""In which order the layers run: assumed as given, learned as seen, and asked for what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterator


class Order:
    """A cycle: after the last layer of a pass comes the first of the next one.

    A layer's successor is believed when it was seen once and nothing else had been seen before, later only when it
    was seen twice in a row: a block that every other pass leaves out (skip-layer guidance) stays expected, at the
    price of one copy for nothing when it does not come.
    """

    def __init__(self, count: int) -> None:
        self._next = [(i + 1) % count for i in range(count)]
        self._seen = [False] * count
        self._rival: list[int | None] = [None] * count
        self._last: int | None = None
        self._streak = 0
        self._streaks = [1] * count
        """How often in a row each layer ran the last time."""
        self._pass: list[int] = []
        self._in_pass: set[int] = set()
        self.last_pass: tuple[int, ...] = tuple(range(count))
        """The layers of the last whole pass, as they ran."""
        self.passes = 0

    @property
    def expected(self) -> int | None:
        return None if self._last is None else self._next[self._last]

    @property
    def complete(self) -> bool:
        """Whether the present pass has come as far as the one before it."""
        return bool(self._pass) and self._pass[-1] == self.last_pass[-1]

    def starts_pass(self, layer: int) -> bool:
        """Whether a visit of this layer, now, would begin a pass: nothing ran yet, or the layer did already.

        A layer that runs twice in a row (a batch in two halves) is still in the same pass.
        """
        return self._last is None or (layer in self._in_pass and layer != self._last)

    def visit(self, layer: int) -> None:
        last = self._last
        if last == layer:
            self._streak += 1
        else:
            if last is not None:
                self._streaks[last] = self._streak
            self._streak = 1
        if self.starts_pass(layer):
            if self._pass:
                self.last_pass = tuple(self._pass)
                self.passes += 1
            self._pass, self._in_pass = [], set()
        if layer not in self._in_pass:
            self._pass.append(layer)
            self._in_pass.add(layer)
        if last is not None and last != layer:
            self._learn(last, layer)
        self._last = layer

    def interrupted(self) -> None:
        """The pass was left in its middle: what comes next is a beginning, and says nothing of the order."""
        self._last = None
        self._pass, self._in_pass = [], set()

    def again(self, layer: int) -> bool:
        """Whether the layer that has just run is expected to run once more before the next one."""
        return layer == self._last and self._streak < self._streaks[layer]

    def ahead(self, layer: int, *, of: Container[int], count: int) -> Iterator[int]:
        """The next `count` different layers out of `of` that are expected after this one."""
        met: set[int] = set()
        for _ in range(len(self._next)):
            layer = self._next[layer]
            if layer in met:
                return
            if layer in of:
                if len(met) == count:
                    return
                met.add(layer)
                yield layer

    def _learn(self, last: int, layer: int) -> None:
        if self._next[last] == layer:
            self._rival[last] = None
        elif not self._seen[last] or self._rival[last] == layer:
            self._next[last] = layer
            self._rival[last] = None
        else:
            self._rival[last] = layer
        self._seen[last] = True
