"""A job's way to its end, for a person: a bar on a terminal, a line a change elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from comfywork.cli.app import state_of

if TYPE_CHECKING:
    from rich.console import Console

    from comfywork.views import JobView


class Board:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("pending", total=1.0)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, job: JobView) -> None:
        said = state_of(job)
        if self._bar:
            self._bar.update(self._task, description=escape(said), completed=job.progress.fraction)
            if job.state in ("completed", "failed", "cancelled"):
                self._bar.stop()
                self._console.print(said, markup=False)
        elif said != self._said:
            self._console.print(said, markup=False)
        self._said = said
