"""Is the docker client new enough, and which one is it when there are several?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, Mend, Repair, info, ok, warning

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation


@dataclass(frozen=True)
class Client:
    id: str = "client"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if not d.clients or d.is_podman:
            return []  # the engine check has said so
        used, *shadowed = d.clients
        if minimum.enough("docker", used.version):
            found = [ok(self.id, f"{used.path}: {used.version}")]
        else:
            found = [
                warning(
                    self.id,
                    f"{used.path} is {used.version or 'silent about its version'}, "
                    f"older than {minimum.spelled('docker')}",
                    "imgbuild doctor --fix"
                    if not shadowed
                    else f"remove {used.path}, which hides the others",
                    repairs=() if shadowed else (Repair(kind=Mend.ENGINE_PACKAGES),),
                )
            ]
        if shadowed:
            others = ", ".join(f"{c.path} ({c.version})" for c in shadowed)
            found.append(info(self.id, f"{used.path} is used; it hides {others}"))
        return found
