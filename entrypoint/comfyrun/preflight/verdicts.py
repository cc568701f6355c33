"""What was found out about a kernel, kept on the cache volume: a GPU and a driver do not change between starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from comfyrun.preflight.words import one_line

SCHEMA = 1
OUTCOMES = ("agrees", "differs", "fails", "unknown")
"""`unknown`: it could not be tried (no memory left, say), which says nothing of the kernel."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    outcome: str
    detail: str
    """One line."""
    seconds: float = 0.0


def place(cache: str, *identity: str) -> Path:
    """The file for a kernel's key, a GPU, a driver, and whatever else the verdict depends on."""
    digest = hashlib.sha256("\0".join(identity).encode(errors="replace")).hexdigest()[:24]
    return Path(cache) / "comfyrun" / "kernels" / f"{digest}.json"


def load(path: Path) -> Verdict | None:
    """What is kept there, or None: whatever the file holds."""
    try:
        return parse(path.read_text(encoding="utf-8")[: 1 << 16])
    except (OSError, ValueError):
        return None


def parse(text: str) -> Verdict | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match value:
        case {
            "schema": 1,
            "outcome": str(outcome),
            "detail": str(detail),
            "seconds": int() | float() as seconds,
        }:
            if outcome in OUTCOMES and not isinstance(seconds, bool) and 0 <= seconds < 1e6:  # noqa: PLR2004
                return Verdict(outcome=outcome, detail=one_line(detail), seconds=float(seconds))
    return None


def save(path: Path, verdict: Verdict) -> None:
    """Written whole or not at all; that it cannot be kept only costs time."""
    new = path.with_name(f"{path.name}.{os.urandom(6).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"schema": SCHEMA, **asdict(verdict)}) + "\n", encoding="utf-8")
        new.replace(path)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            new.unlink()
