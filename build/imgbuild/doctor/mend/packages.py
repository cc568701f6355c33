"""Which packages bring what, and where they come from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Mend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgbuild.doctor.mend.host import Host

OLDEST_DEBIAN = 12
"""Older ones have a libc on which the donor's packages do not install (they need 2.34)."""
NEW_ENOUGH_DEBIAN = 13


@dataclass(frozen=True, kw_only=True)
class Need:
    package: str
    program: str | None = None
    """Its row in the table of minimum versions, None when any version will do."""


CERTIFICATES = Need(package="ca-certificates")
DEBIAN = (
    CERTIFICATES,
    Need(package="docker.io", program="docker"),
    Need(package="docker-cli", program="docker"),
    Need(package="docker-buildx", program="buildx"),
    Need(package="docker-compose", program="compose"),
)
UBUNTU = (
    CERTIFICATES,
    Need(package="docker.io", program="docker"),
    Need(package="docker-buildx", program="buildx"),
    Need(package="docker-compose-v2", program="compose"),
)
# Docker's own packages, which conflict with the distribution's: where they are, they are completed.
DOCKER_CE = (
    Need(package="docker-ce", program="docker"),
    Need(package="docker-ce-cli", program="docker"),
    Need(package="docker-buildx-plugin", program="buildx"),
    Need(package="docker-compose-plugin", program="compose"),
)
EMULATOR = (Need(package="qemu-user", program="qemu"), Need(package="qemu-user-binfmt", program="qemu"))
BOOTSTRAP = (
    Need(package="mmdebstrap"),
    Need(package="arch-test"),
    Need(package="gpg"),  # mmdebstrap finds the suite's key with it
    Need(package="debian-archive-keyring"),
)
GIT = (Need(package="git"),)

NAMES = tuple(
    dict.fromkeys(n.package for group in (DEBIAN, UBUNTU, DOCKER_CE, EMULATOR, BOOTSTRAP, GIT) for n in group)
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """`own` come from the suite in use, `donor` from the newer one, `nowhere` from neither."""

    own: tuple[str, ...] = ()
    donor: tuple[str, ...] = ()
    nowhere: tuple[Need, ...] = ()


def needs(kinds: Iterable[Mend], host: Host) -> tuple[Need, ...]:
    asked = frozenset(kinds)
    ce = host.packages.get("docker-ce")
    engine = DOCKER_CE if ce and ce.installed else UBUNTU if host.distro == "ubuntu" else DEBIAN
    groups = {
        Mend.ENGINE_PACKAGES: engine,
        Mend.BINFMT_PACKAGES: EMULATOR,
        Mend.BOOTSTRAP_PACKAGES: BOOTSTRAP,
        Mend.GIT_PACKAGE: GIT,
    }
    return tuple(need for kind, group in groups.items() if kind in asked for need in group)


def select(wanted: Iterable[Need], host: Host) -> Selection:
    """Where each package that is not there yet comes from."""
    own, donor, nowhere = [], [], []
    for need in wanted:
        package = host.packages.get(need.package)
        if package and package.installed and _fits(need, package.installed):
            continue
        if _in_own_suite(need, host):
            own.append(need.package)
        elif host.distro == "debian" and (host.version is None or host.version >= OLDEST_DEBIAN):
            donor.append(need.package)
        else:
            nowhere.append(need)
    return Selection(own=tuple(own), donor=tuple(donor), nowhere=tuple(nowhere))


def _in_own_suite(need: Need, host: Host) -> bool:
    if need.program is None:
        return True  # any version will do, so apt may say what is wrong
    if host.known:
        package = host.packages.get(need.package)
        return bool(package and package.candidate and _fits(need, package.candidate))
    # apt's lists were never fetched: what is known of the distribution
    return host.distro != "debian" or (host.version or 0) >= NEW_ENOUGH_DEBIAN


def _fits(need: Need, version: str) -> bool:
    return need.program is None or minimum.enough(need.program, version)
