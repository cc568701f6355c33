"""What became of one file of a pull, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Done = Literal["fetched", "replaced", "already right", "left alone", "refused", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    path: str
    """Below MODELS_PATH."""
    source: str
    outcome: Done
    size: int | None = None
    sha256: str | None = None
    evidence: str | None = None
    """Who says that this is the right hash: `the list`, `the hub`, or `nobody`."""
    revision: str | None = None
    taken_up: int = 0
    """Bytes that an earlier run had left."""
    failures: int = 0
    """Times that the server failed or broke off."""
    seconds: float = 0.0
    message: str = ""
    hint: str = ""
    exit_code: int = 0


def exit_code(outcomes: Iterable[Outcome]) -> int:
    return gravest(outcome.exit_code for outcome in outcomes)


def gravest(codes: Iterable[int]) -> int:
    """Stopped, then a wrong file, no access, a server that failed; 0 when nothing went wrong."""
    found = set(codes)
    return next((code for code in (130, 1, 77, 69, 2) if code in found), 0)
