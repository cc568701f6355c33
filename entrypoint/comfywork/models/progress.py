"""Progress of pulls on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from comfywork.quantities import human

if TYPE_CHECKING:
    from rich.progress import TaskID

    from comfywork.models.download import Meter
    from comfywork.models.outcome import Done

_EVERY = 10.0
"""Seconds between two lines about one file."""


class Bars:
    """For a terminal. A context; nothing is drawn outside of it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def meter(self, path: str, size: int | None) -> Meter:
        with self._guard:
            task = self._tasks.get(path)
            if task is None:
                task = self._tasks[path] = self._progress.add_task(escape(path), total=size)
            else:
                self._progress.reset(task, total=size)
        return _Bar(self._progress, task, path)

    def done(self, path: str, outcome: Done) -> None:
        with self._guard:
            if path in self._tasks:
                self._progress.remove_task(self._tasks.pop(path))
        self.say(f"{path}: {outcome}")

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, path: str) -> None:
        self._progress, self._task, self._path = progress, task, path

    def at(self, offset: int, size: int | None) -> None:
        self._progress.update(self._task, completed=offset, total=size)

    def hashed(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def said(self, text: str) -> None:
        self._progress.console.print(f"{self._path}: {text}", markup=False, highlight=False)


class Lines:
    """For logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def meter(self, path: str, size: int | None) -> Meter:
        return _Line(self, path, size)

    def done(self, path: str, outcome: Done) -> None:
        self.say(f"{path}: {outcome}")

    def say(self, text: str) -> None:
        with self._guard:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Line:
    def __init__(self, lines: Lines, path: str, size: int | None) -> None:
        self._lines, self._path, self._size = lines, path, size
        self._read = 0
        self._last = self._now()
        self._last_offset: int | None = None

    @staticmethod
    def _now() -> float:
        return time.monotonic()

    def at(self, offset: int, size: int | None) -> None:
        now = self._now()
        if self._last_offset is None:
            self._last_offset = offset
        if now - self._last < _EVERY:
            return
        speed = max(0, offset - self._last_offset) / (now - self._last)
        of = f" of {human(size)} ({100 * offset // size} %)" if size else ""
        self._lines.say(f"{self._path}: {human(offset)}{of}, {human(speed)}/s")
        self._last, self._last_offset = now, offset

    def hashed(self, count: int) -> None:
        self._read += count
        if self._now() - self._last >= _EVERY:
            of = f" of {human(self._size)}" if self._size else ""
            self._lines.say(f"{self._path}: {human(self._read)}{of} read again")
            self._last = self._now()

    def said(self, text: str) -> None:
        self._lines.say(f"{self._path}: {text}")


def board() -> Bars | Lines:
    """What suits standard error."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines(console)
