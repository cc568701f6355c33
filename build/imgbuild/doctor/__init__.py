"""What this machine lacks for building and running, and how to mend it.

Each check is a small object in a file of its own: it looks at a Situation and
returns Findings. All input comes through a Probe, all repairs go through Hands.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from imgbuild.doctor.binfmt import Binfmt
from imgbuild.doctor.bootstrap import Bootstrap
from imgbuild.doctor.buildx import Buildx
from imgbuild.doctor.certificates import Certificates
from imgbuild.doctor.client import Client
from imgbuild.doctor.compose import Compose
from imgbuild.doctor.disk import DiskSpace, check_disk
from imgbuild.doctor.engine import Engine
from imgbuild.doctor.finding import Finding, Severity
from imgbuild.doctor.foreign_python import ForeignPython
from imgbuild.doctor.git import Git
from imgbuild.doctor.index import Index
from imgbuild.doctor.mend import fix
from imgbuild.doctor.mend.hands import Hands, own_hands
from imgbuild.doctor.mend.plan import ensure
from imgbuild.doctor.nvidia import Nvidia
from imgbuild.doctor.podman import Podman
from imgbuild.doctor.probe import Probe, this_machine
from imgbuild.doctor.registry import Registry
from imgbuild.doctor.situation import Check, survey
from imgbuild.doctor.store import Store
from imgbuild.doctor.upstream import Upstream

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CHECKS",
    "Finding",
    "Hands",
    "Probe",
    "Severity",
    "check_disk",
    "ensure",
    "examine",
    "failed",
    "fix",
    "own_hands",
    "this_machine",
]

# In the order of the report: first the engine, which most others build on.
CHECKS: tuple[Check, ...] = (
    Engine(),
    Client(),
    Buildx(),
    Compose(),
    Store(),
    Binfmt(),
    ForeignPython(),
    Registry(),
    Bootstrap(),
    DiskSpace(),
    Certificates(),
    Index(),
    Git(),
    Upstream(),
    Nvidia(),
    Podman(),
)


def examine(
    probe: Probe,
    *,
    platforms: frozenset[str],
    cache: Path,
    needed_bytes: int | None = None,
    git_url: str | None = None,
    offline: bool = False,
) -> list[Finding]:
    """Run every check, several at a time; the findings come in the order of CHECKS.

    `needed_bytes` is the disk that is about to be used, None for a general idea; `git_url` is ComfyUI's
    repository, None to leave it unasked; `offline` asks nothing that needs a network.
    """
    situation = survey(
        probe, platforms=platforms, cache=cache, needed_bytes=needed_bytes, git_url=git_url, offline=offline
    )
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        return [finding for found in pool.map(lambda check: check(situation), CHECKS) for finding in found]


def failed(findings: list[Finding]) -> bool:
    return any(f.severity is Severity.ERROR for f in findings)
