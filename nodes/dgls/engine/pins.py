"""How much host memory may be pinned: a container's limit counts, not the machine's memory."""

from __future__ import annotations

import threading
from pathlib import Path

_SHARE = 0.75
"""Of the limit. Pinned pages can neither be swapped nor reclaimed: activations, caches and the rest need theirs."""
_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 for no limit."""


class PinBudget:
    """Bytes that may be pinned, shared by all sessions of a process."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._lock = threading.Lock()

    @classmethod
    def of_this_machine(cls) -> PinBudget:
        limit = memory_limit()
        return cls(_UNLIMITED if limit is None else int(limit * _SHARE))

    def take(self, nbytes: int) -> bool:
        with self._lock:
            if self.used + nbytes > self.total:
                return False
            self.used += nbytes
            return True

    def give(self, nbytes: int) -> None:
        with self._lock:
            self.used -= nbytes


def memory_limit(
    *,
    groups: Path = Path("/proc/self/cgroup"),
    mounted: Path = Path("/sys/fs/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Bytes of memory that this process may use: the smallest of its cgroups' limits and the machine's memory.

    None where neither is told (not Linux).
    """
    limits = [*_group_limits(groups, mounted), *_machine_memory(meminfo)]
    return min(limits, default=None)


def _group_limits(groups: Path, mounted: Path) -> list[int]:
    limits = []
    for line in _read(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # v2: one hierarchy; "0::/path"
            limits += _up(mounted, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _up(mounted / "memory", path, "memory.limit_in_bytes")
    return limits


def _up(root: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of those it is in; inside a container the path may be the host's, and not exist."""
    folder = root / path.strip("/")
    found = []
    for group in (folder, *folder.parents):
        text = _read(group / name).strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append(int(text))
        if group == root:
            break
    return found


def _machine_memory(meminfo: Path) -> list[int]:
    for line in _read(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return [int(value.split()[0]) * 1024]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
