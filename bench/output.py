"""Tables as Markdown, which a terminal shows as well and a result file keeps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild.errors import ImgbuildError
from imgbuild.report import tell_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).with_name("results")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A Markdown table whose columns line up; `right` are those of numbers."""
    widths = [max(3, *(len(row[i]) for row in (columns, *rows))) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ("-" * (w - 1) + ":" if i in right else "-" * w for i, w in enumerate(widths))
    return "\n".join([line(columns), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]) + "\n"


def megabytes(size: int | None) -> str:
    """Decimal, as registries count; small layers with their kilobytes."""
    if size is None:
        return "–"
    return f"{size / 1e6:,.1f}" if size >= 100_000 else f"{size / 1e6:.3f}"


def keep(name: str, text: str, data: Any) -> None:
    """Write a committed result: NAME.md for people, NAME.json for programs."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(as_json(data))


def as_json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def run(main: Callable[[], None]) -> None:
    """Call a script's main; a failure is one message, as in the tool."""
    try:
        main()
    except ImgbuildError as e:
        sys.exit(tell_error(e))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
