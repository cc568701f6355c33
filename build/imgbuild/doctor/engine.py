"""Is there a container engine, does it answer, and is it new enough?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, Mend, Repair, error, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

INSTALL = Repair(kind=Mend.ENGINE_PACKAGES)
START = Repair(kind=Mend.ENGINE_START)


@dataclass(frozen=True)
class Engine:
    id: str = "engine"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if not d.clients:
            return [
                error(
                    self.id,
                    "docker is not installed: there is no program of that name on PATH",
                    "imgbuild doctor --fix",
                    "or build with Podman: imgbuild build --engine podman …",
                    repairs=(INSTALL, START),
                )
            ]
        if d.is_podman:
            return [
                error(
                    self.id,
                    f"{d.clients[0].path} is Podman's stand-in for docker, which has no BuildKit",
                    "imgbuild build --engine podman …",
                    "or replace the package podman-docker by docker.io",
                )
            ]
        if d.server is None:
            return [self._silent(s)]
        if not minimum.enough("docker", d.server):
            return [
                error(
                    self.id,
                    f"the Docker engine is {d.server}, older than {minimum.spelled('docker')}",
                    "imgbuild doctor --fix" if d.is_ours else f"update the engine at {d.endpoint}",
                    repairs=(INSTALL, START) if d.is_ours else (),
                )
            ]
        return [ok(self.id, f"Docker {d.server} answers{_where(d.endpoint)}")]

    def _silent(self, s: Situation) -> Finding:
        d = s.docker
        if "permission denied" in d.error.casefold():
            return error(
                self.id,
                f"this user may not talk to the Docker engine{_where(d.endpoint)}",
                'sudo usermod -aG docker "$USER"   # then log in again',
            )
        reason = f" ({d.error})" if d.error else ""
        what = f"the Docker engine{_where(d.endpoint)} does not answer{reason}"
        if "DOCKER_HOST" in s.probe.env and not d.is_ours:
            return error(
                self.id,
                what,
                "start the engine that DOCKER_HOST names, or use this machine's: unset DOCKER_HOST",
            )
        if not d.is_ours:
            return error(
                self.id, what, "start that engine, or use this machine's: docker context use default"
            )
        repairs = (START,) if s.probe.which("dockerd") else (INSTALL, START)
        return error(self.id, what, "imgbuild doctor --fix", repairs=repairs)


def _where(endpoint: str) -> str:
    return f" at {endpoint}" if endpoint else ""
