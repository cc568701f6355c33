"""What people see: errors, tables, steps. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from imgbuild.errors import ImgbuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def tell_error(error: Exception) -> int:
    """Show an error with its hint on stderr; return its exit code."""
    code = 1
    lines = [f"{_paint('error:', '31;1')} {error}"]
    if isinstance(error, ImgbuildError):
        code = error.exit_code
        if error.hint:
            lines.append(f"{_paint('hint:', '36;1')} {error.hint}")
    print("\n".join(lines), file=sys.stderr)
    return code


def say(text: str) -> None:
    print(f"{_paint('•', '36')} {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    print(f"{_paint('warning:', '33;1')} {text}", file=sys.stderr, flush=True)


def notice(title: str, lines: Iterable[str]) -> None:
    """Something that must not be overlooked."""
    rows = [title, *lines]
    width = max(len(r) for r in rows)
    edge = "━" * (width + 2)
    body = "\n".join(f"┃ {r.ljust(width)} ┃" for r in rows)
    print(_paint(f"┏{edge}┓\n{body}\n┗{edge}┛", "33;1"), file=sys.stderr, flush=True)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
) -> None:
    """A table on stdout; `right` are the columns of numbers."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    # Text: what stands in a matrix is not markup.
    shown = Table(
        title=Text(title, style="table.title") if title else None, title_justify="left", header_style="bold"
    )
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i in set(right) else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160)
    console.print(shown)


def human(size: int) -> str:
    """Bytes as people read them: 1536 → '1.5 kB' (decimal, as registries and disks count)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


class Meter:
    """Bytes on their way: a moving line on a terminal, else a line every `pause` seconds. Use it with `with`.

    `total` is in bytes; 0 where nobody knows.
    """

    def __init__(self, what: str, total: int, *, pause: float = 10.0) -> None:
        self._what, self._total, self._pause = what, total, pause
        self._done = 0
        self._begun = self._told = time.monotonic()
        self._moving = sys.stderr.isatty()
        self._shown = False

    def __enter__(self) -> Meter:  # noqa: PYI034  (no subclass will come)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._moving and self._shown:
            print(file=sys.stderr, flush=True)

    def add(self, size: int) -> None:
        """`size` more bytes; less than 0 when what was done has to be done again."""
        self.at(self._done + size)

    def at(self, done: int) -> None:
        """`done` bytes so far."""
        self._done = done
        now = time.monotonic()
        if now - self._told < (0.2 if self._moving else self._pause):
            return
        self._told, self._shown = now, True
        line = f"{self._what}: {self._state(now - self._begun)}"
        if self._moving:
            print(f"\r\x1b[K{_paint('•', '36')} {line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def _state(self, seconds: float) -> str:
        rate = self._done / seconds
        if not self._total:
            return f"{human(self._done)}, {human(int(rate))}/s"
        left = max(0, self._total - self._done) / rate if rate > 0 else 0
        percent = min(100, 100 * self._done // self._total)
        return f"{human(self._done)} of {human(self._total)} ({percent} %), {human(int(rate))}/s, {left:.0f} s left"


def _paint(text: str, code: str) -> str:
    if not sys.stderr.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
