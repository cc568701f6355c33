"""Is BuildKit's command line there, and new enough?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, Mend, Repair, error, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

INSTALL = (Repair(kind=Mend.ENGINE_PACKAGES),)


@dataclass(frozen=True)
class Buildx:
    id: str = "buildx"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if not d.clients or d.is_podman:
            return []
        least = minimum.spelled("buildx")
        if d.buildx is None:
            return [
                error(
                    self.id,
                    f"docker buildx is missing; {least} or newer is needed",
                    "imgbuild doctor --fix",
                    repairs=INSTALL,
                )
            ]
        if not minimum.enough("buildx", d.buildx):
            return [
                error(
                    self.id,
                    f"docker buildx is {d.buildx}, older than {least}",
                    "imgbuild doctor --fix",
                    "a copy in ~/.docker/cli-plugins comes before the system's: remove it if it is the old one",
                    repairs=INSTALL,
                )
            ]
        return [ok(self.id, d.buildx)]
