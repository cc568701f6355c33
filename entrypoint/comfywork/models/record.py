"""What pulls have put into a folder: MODELS_PATH/.comfyrun-models.json.

It lets a second pull leave a right file alone without reading 100 GB again, and says of files that no list has locked
what they were when they came.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = ".comfyrun-models.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, as it was when it was last read from end to end."""

    source: str
    size: int
    sha256: str
    mtime_ns: int
    evidence: str
    """Who says that this is the right hash: the list, the hub, or nobody."""
    revision: str | None = None


def read(models: Path) -> dict[str, Entry]:
    """By path below `models`. What cannot be read counts as not recorded: it is only ever a saving of time."""
    found = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        files = json.loads((models / NAME).read_text(encoding="utf-8")).get("files", {})
        for path, value in files.items():
            with contextlib.suppress(TypeError):
                found[path] = Entry(**value)
    return found


def write(models: Path, entries: Mapping[str, Entry]) -> None:
    """Whole or not at all. The caller holds the folder's lock."""
    value = {"schema": SCHEMA, "files": {path: asdict(entries[path]) for path in sorted(entries)}}
    fresh = models / f"{NAME}~"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(models / NAME)
