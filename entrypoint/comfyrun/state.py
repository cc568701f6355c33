"""What `comfyrun serve` tells `comfyrun health`: a page of JSON in a memfd that it keeps open.

No file system is needed, so it works with a read-only root and without /tmp, leaves nothing behind,
and is never another container's. It is found as an open file of ComfyUI's parent.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NAME = "comfyrun-state"
_SIZE = 4096


class State:
    """The writing side. Where the system has no memfd, nothing is told."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.memfd_create(_NAME)

    def write(self, value: Mapping[str, object]) -> None:
        if self._file is None:
            return
        # Of one size always, in one call: what is read is never half of another page.
        page = json.dumps(value).encode().ljust(_SIZE)
        os.pwrite(self._file, page, 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read(proc: Path, pid: int) -> dict[str, object] | None:
    """What the process `pid` tells, or None: it is no comfyrun, or another user's."""
    try:
        files = list((proc / str(pid) / "fd").iterdir())
    except OSError:
        return None
    for file in files:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if not str(file.readlink()).startswith(f"/memfd:{_NAME}"):
                continue
            value = json.loads(file.read_bytes())
            if isinstance(value, dict):
                return value
    return None
