"""Are the programs there that make a base where no registry can be reached?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, Mend, Repair, error, info, ok
from imgbuild.doctor.situation import Answer

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

PROGRAMS = ("mmdebstrap", "arch-test")
INSTALL = (Repair(kind=Mend.BOOTSTRAP_PACKAGES),)


@dataclass(frozen=True)
class Bootstrap:
    id: str = "bootstrap"

    def __call__(self, s: Situation) -> list[Finding]:
        missing = [p for p in PROGRAMS if not s.probe.which(p)]
        if not missing:
            return [ok(self.id, f"{' and '.join(PROGRAMS)} are installed")]
        names = ", ".join(missing)
        if s.registry is Answer.NO:
            return [
                error(
                    self.id,
                    f"no container registry answers, and what bootstraps a base without one is missing: {names}",
                    "imgbuild doctor --fix",
                    repairs=INSTALL,
                )
            ]
        return [info(self.id, f"missing: {names}; needed only where no container registry answers")]
