"""Does the engine keep images in containerd's store? The old one holds neither indexes nor attestations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, Mend, Repair, error, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

FEATURE = '{"features": {"containerd-snapshotter": true}}'


@dataclass(frozen=True)
class Store:
    id: str = "image store"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if d.server is None:
            return []
        if d.containerd_store:
            return [ok(self.id, f"containerd ({d.info.get('Driver', 'unknown snapshotter')})")]
        driver = d.info.get("Driver") or "an unknown driver"
        what = f"the engine keeps images with {driver}, not in the containerd image store"
        if not d.is_ours:
            return [error(self.id, what, f"in that engine's daemon.json: {FEATURE}", "then restart it")]
        if d.running:
            return [
                error(
                    self.id,
                    f"{what}; {d.running} running containers keep it from being restarted by --fix",
                    f"put {FEATURE} into /etc/docker/daemon.json",
                    "stop the containers and restart dockerd (systemctl restart docker), or imgbuild doctor --fix",
                )
            ]
        return [error(self.id, what, "imgbuild doctor --fix", repairs=(Repair(kind=Mend.IMAGE_STORE),))]
