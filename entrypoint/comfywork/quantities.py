"""Sizes and durations as people write them."""

from __future__ import annotations

import re

_SIZES = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes. `8MB` is 8,000,000 and `8MiB` 8,388,608. ValueError when it is no size."""
    found = _SIZE.fullmatch(text.strip())
    if not found or found[2].lower() not in _SIZES:
        raise ValueError(f"{text!r} is no size, such as 512MB or 2GiB")
    return int(float(found[1]) * _SIZES[found[2].lower()])


def seconds(text: str) -> float:
    """Seconds, of `90`, `90s`, `5m`, `12h` or `7d`. ValueError when it is no duration."""
    found = _TIME.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no duration, such as 90s, 12h or 7d")
    return float(found[1]) * _TIMES[found[2].lower()]


def human(number: float) -> str:
    """Bytes with three digits that count: `3.01 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":  # noqa: PLR2004 - 999.6 would show as 1e+03
            return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1000
    raise AssertionError
