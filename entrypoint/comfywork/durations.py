"""Durations as metrics count them: how many jobs took up to so many seconds."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Final

from comfywork import names

if TYPE_CHECKING:
    from redis.client import Pipeline

BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, float("inf"))
"""Upper bounds in seconds: from a cached picture to a long video."""


def count(pipe: Pipeline, field: str, seconds: float) -> None:
    """One more of `field` (took, waited), within the caller's transaction."""
    seconds = max(0.0, seconds)
    pipe.hincrby(names.COUNTERS, f"{field}:{BUCKETS[bisect.bisect_left(BUCKETS, seconds)]:g}", 1)
    pipe.hincrbyfloat(names.COUNTERS, f"{field}:sum", round(seconds, 4))
