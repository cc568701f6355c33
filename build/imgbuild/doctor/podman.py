"""The second engine, where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, info, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation


@dataclass(frozen=True)
class Podman:
    id: str = "podman"

    def __call__(self, s: Situation) -> list[Finding]:
        if not s.probe.which("podman"):
            return [info(self.id, "not installed; it is an alternative to Docker, not a need")]
        version = s.probe.run("podman", "--version").stdout.strip()
        if not minimum.enough("podman", version):
            return [
                info(
                    self.id,
                    f"{version or 'podman'} is older than {minimum.spelled('podman')}: "
                    "imgbuild build --engine podman was not tried with it",
                )
            ]
        return [ok(self.id, version)]
