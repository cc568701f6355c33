"""Is git there? The lock pins commits with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, Mend, Repair, ok, warning

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation


@dataclass(frozen=True)
class Git:
    id: str = "git"

    def __call__(self, s: Situation) -> list[Finding]:
        if not s.probe.which("git"):
            return [
                warning(
                    self.id,
                    "git is missing: sources cannot be pinned to a commit",
                    "imgbuild doctor --fix",
                    repairs=(Repair(kind=Mend.GIT_PACKAGE),),
                )
            ]
        return [ok(self.id, s.probe.run("git", "--version").stdout.strip() or "git")]
