"""What has been measured so far, by the shapes that the model was run with, and when that calls for a new plan."""

from __future__ import annotations

import statistics
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from .costs import Bus, LayerCost

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from .trace import Traced

_ENOUGH = 2
"""Traces of the same shapes: the first pass also tunes, compiles and loads kernels."""
_KEPT = 32
"""Different shapes that are remembered."""
_ASSUMED = 25e9
"""Bytes per second before anything was measured."""


class Measured:
    def __init__(self, nbytes: Sequence[int], streamed: Sequence[bool]) -> None:
        self._nbytes, self._streamed = nbytes, streamed
        self._computes: dict[Hashable, list[dict[int, float]]] = {}
        self._copied: tuple[int, float] = (0, 0.0)
        # The last passes, of which the first half must look like the second: with guidance two kinds alternate.
        self._recent: deque[Hashable] = deque(maxlen=4)
        self._planned: Hashable = None

    @property
    def known(self) -> bool:
        return bool(self._computes)

    @property
    def bytes_per_second(self) -> float | None:
        nbytes, seconds = self._copied
        return nbytes / seconds if seconds else None

    @property
    def bus(self) -> Bus:
        return Bus(bytes_per_second=self.bytes_per_second or _ASSUMED)

    def add(self, traced: Traced) -> None:
        kept = self._computes.setdefault(traced.signature, [])
        kept.append(traced.computes)
        if len(kept) > _ENOUGH:
            del kept[0]
        if len(self._computes) > _KEPT:
            del self._computes[next(iter(self._computes))]
        if traced.copied_seconds:
            self._copied = traced.copied_bytes, traced.copied_seconds

    def wanted(self, shapes: Hashable) -> bool:
        """Whether a pass of these shapes should be traced."""
        return len(self._computes.get(shapes, ())) < _ENOUGH

    def due(self, shapes: Hashable) -> bool:
        """Whether the passes up to now call for a look at the plan; `shapes` are those of the pass that begins."""
        mixture = self._mixture()
        self._recent.append(shapes)
        measured = min((len(self._computes.get(one, ())) for one in mixture), default=0)
        stand = (mixture, measured)
        if not measured or stand == self._planned:
            return False
        self._planned = stand
        return True

    def costs(self) -> list[LayerCost]:
        """By layer, the mean over the present shapes; as long as its bytes take where nothing was measured."""
        mixture = [one for one in self._mixture() if one in self._computes] or list(self._computes)[-1:]
        best = [_best(self._computes[one]) for one in mixture]
        rates = [seconds / self._nbytes[i] for one in best for i, seconds in one.items() if self._nbytes[i]]
        rate = statistics.median(rates) if rates else 1 / self.bus.bytes_per_second
        costs = []
        for i, nbytes in enumerate(self._nbytes):
            seconds = [one[i] for one in best if i in one]
            compute = statistics.fmean(seconds) if seconds else nbytes * rate
            costs.append(LayerCost(nbytes=nbytes, compute=compute, streamed=self._streamed[i]))
        return costs

    def _mixture(self) -> frozenset[Hashable]:
        """The shapes of the last passes; of the plan that there is, while they are still changing."""
        recent = list(self._recent)
        half = len(recent) // 2
        if len(recent) < (self._recent.maxlen or 0) or set(recent[:half]) == set(recent[half:]):
            return frozenset(recent)
        return self._planned[0] if isinstance(self._planned, tuple) else frozenset(recent)


def _best(traces: Sequence[dict[int, float]]) -> dict[int, float]:
    """By layer, the shortest: what disturbs a compute only ever makes it longer."""
    layers = {i for trace in traces for i in trace}
    return {i: min(trace[i] for trace in traces if i in trace) for i in layers}


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Shapes and types of the tensors that a layer is called with."""
    return tuple(
        (tuple(value.shape), value.dtype)
        for value in (*args, *kwargs.values())
        if isinstance(value, torch.Tensor)
    )
