"""Work on several things at once, in threads that a stop does not wait for."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")

_STEP = 0.2
"""Seconds between two looks at `stop`: a signal's handler runs in the thread that waits here."""


def each(
    items: Sequence[T],
    work: Callable[[T], R],
    *,
    parallel: int,
    stop: threading.Event,
    grace: float = 3.0,
) -> list[R]:
    """Results as they come. After `stop`, what has not ended within `grace` seconds is left behind.

    What `work` raises stops the rest and is raised here. The threads are daemons: one that hangs in a read of the
    network cannot keep the process.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    found: queue.SimpleQueue[R | BaseException] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    for _ in range(min(parallel, len(items))):
        threading.Thread(target=_worker, args=(todo, found, work), daemon=True).start()
    results: list[R] = []
    while len(results) < len(items) and grace > 0:
        try:
            result = found.get(timeout=_STEP)
        except queue.Empty:
            grace -= _STEP if stop.is_set() else 0
            continue
        if isinstance(result, BaseException):
            stop.set()
            raise result
        results.append(result)
    return results


def _worker(
    todo: queue.SimpleQueue[T], found: queue.SimpleQueue[R | BaseException], work: Callable[[T], R]
) -> None:
    while True:
        try:
            item = todo.get_nowait()
        except queue.Empty:
            return
        try:
            found.put(work(item))
        except BaseException as error:  # noqa: BLE001  (raised again in the thread that waits)
            found.put(error)
