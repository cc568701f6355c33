"""What others say, as it can stand in a line of ours."""

from __future__ import annotations


def one_line(value: object, most: int = 400) -> str:
    """A short text without line breaks and control characters, whatever it was."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)[:most]).split())
