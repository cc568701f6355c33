"""Is there room for the images, the build cache and what the tool keeps?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, Severity, info

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

GB = 10**9
# Without an estimate: a GPU image is about 6 GB, uncompressed and unpacked for a local load about
# 4 times that (600 MB of layers took 2.35 GB); the CPU image needs a third.
COMFORTABLE = 25 * GB
LEAST = 8 * GB
MARGIN = 1.25
"""Below this times what is needed, a word of warning: estimates are estimates."""

CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")
CONTAINERD_ROOT = Path("/var/lib/containerd")


def check_disk(free_bytes: int, needed_bytes: int | None) -> tuple[Severity, str]:
    """How bad it is, and the sentence about it.

    With an estimate, less than that is an error; without (None), less than 8 GB.
    """
    least = LEAST if needed_bytes is None else needed_bytes
    comfortable = COMFORTABLE if needed_bytes is None else needed_bytes * MARGIN
    free = f"{free_bytes / GB:.1f} GB free"
    if free_bytes < least:
        return Severity.ERROR, f"{free}, at least {least / GB:.1f} GB needed"
    if free_bytes < comfortable:
        return Severity.WARNING, f"{free}, {comfortable / GB:.0f} GB would be comfortable"
    return Severity.OK, free


@dataclass(frozen=True)
class DiskSpace:
    id: str = "disk"

    def __call__(self, s: Situation) -> list[Finding]:
        places: dict[int, list[str]] = {}
        free: dict[int, int] = {}
        found = []
        for place in _places(s):
            if disk := s.probe.disk(place):
                places.setdefault(disk.device, []).append(str(place))
                free[disk.device] = disk.free
            else:
                found.append(info(self.id, f"{place}: the free space cannot be read"))
        for device, names in places.items():
            severity, sentence = check_disk(free[device], s.needed_bytes)
            found.append(
                Finding(
                    check=self.id,
                    severity=severity,
                    what=f"{' and '.join(names)}: {sentence}",
                    remedy=()
                    if severity is Severity.OK
                    else (
                        "imgbuild df; imgbuild prune",
                        "docker builder prune",
                        "or keep the tool's cache elsewhere: IMGBUILD_CACHE=DIR",
                    ),
                )
            )
        return found


def _places(s: Situation) -> list[Path]:
    places = [s.cache]
    if s.docker.is_local:
        places.insert(0, Path(s.docker.data_root))
        # A containerd of the system's, rather than one that dockerd started, keeps the images itself.
        if s.docker.containerd_store and s.probe.exists(CONTAINERD_SOCKET):
            places.insert(0, CONTAINERD_ROOT)
    return places
