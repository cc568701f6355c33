"""Heredocs, which Dockerfiles and shell scripts write in the same way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Heredoc:
    command: str
    """What is written beside `<<WORD`: the program that gets it, or the file that it becomes."""
    text: str
    line: int


MARK = re.compile(r"<<(-?)\s*(['\"]?)([A-Za-z_][\w.-]*)\2")


def end_of_heredoc(lines: Sequence[str], start: int, mark: re.Match[str]) -> int:
    """The index of the line that closes it, or of the last and one when none does."""
    for at in range(start, len(lines)):
        if (lines[at].lstrip("\t") if mark[1] else lines[at]) == mark[3]:
            return at
    return len(lines)
