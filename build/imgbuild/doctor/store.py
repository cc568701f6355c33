"""Does the engine keep images in containerd's store? The old one holds neither indexes nor attestations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, Mend, Repair, error, ok

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

FEATURE = '{"features": {"containerd-snapshotter": true}}'
# With the containerd store on, dockerd takes `storage-driver` for a snapshotter's name. These are none: 26.1.5
# starts with overlay2 all the same, and then fails to unpack every image ("snapshotter not loaded").
OLD_DRIVERS = frozenset({"overlay2", "aufs", "devicemapper", "vfs"})


@dataclass(frozen=True)
class Store:
    id: str = "image store"

    def __call__(self, s: Situation) -> list[Finding]:
        d = s.docker
        if d.server is None:
            return []
        if d.containerd_store and d.info.get("Driver") in OLD_DRIVERS:
            return [
                error(
                    self.id,
                    f"the engine's storage-driver is set to {d.info['Driver']}, "
                    "which the containerd image store does not have: no image can be unpacked",
                    "remove storage-driver from /etc/docker/daemon.json and restart dockerd",
                )
            ]
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
                    f"{what}; running containers ({d.running}) keep --fix from restarting it",
                    f"put {FEATURE} into /etc/docker/daemon.json",
                    "stop the containers and restart dockerd (systemctl restart docker), or imgbuild doctor --fix",
                )
            ]
        return [error(self.id, what, "imgbuild doctor --fix", repairs=(Repair(kind=Mend.IMAGE_STORE),))]
