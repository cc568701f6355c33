"""Is docker compose there? Only running needs it, not building."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, Mend, Repair, ok, warning

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

INSTALL = (Repair(kind=Mend.ENGINE_PACKAGES),)


@dataclass(frozen=True)
class Compose:
    id: str = "compose"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if not d.clients or d.is_podman:
            return []
        if d.compose is not None and minimum.enough("compose", d.compose):
            return [ok(self.id, d.compose)]
        state = "missing" if d.compose is None else f"{d.compose}, too old"
        return [
            warning(
                self.id,
                f"docker compose is {state}: images build, but the files in compose/ need "
                f"{minimum.spelled('compose')} or newer",
                "imgbuild doctor --fix",
                repairs=INSTALL,
            )
        ]
