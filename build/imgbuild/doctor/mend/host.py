"""What the repairs have to know of the machine: its distribution, packages, init system and dockerd."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor.mend import apt
from imgbuild.doctor.mend.daemonjson import DAEMON_JSON
from imgbuild.doctor.mend.packages import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.doctor.probe import Probe

ETC_APT = Path("/etc/apt")
PID_FILES = (Path("/run/docker.pid"), Path("/var/run/docker.pid"))


@dataclass(frozen=True, kw_only=True)
class Host:
    root: bool
    distro: str
    """ID of os-release: debian, ubuntu, fedora …"""
    pretty: str
    version: int | None
    codename: str
    systemd: bool
    daemon_json: str | None
    dockerd: tuple[int, tuple[str, ...]] | None = None
    """Process and command line of a dockerd that runs here."""
    running: int = 0
    """Containers that a restart of the engine would end."""
    sources: tuple[apt.Source, ...] = ()
    pin: str | None = None
    packages: Mapping[str, apt.Package] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether apt's lists have been fetched."""
        # What is installed is its own candidate, also with no list at all.
        return any(p.candidate not in (None, p.installed) for p in self.packages.values())

    @property
    def refusal(self) -> str | None:
        """Why `--fix` does nothing here by itself, or None."""
        if self.distro not in ("debian", "ubuntu"):
            return f"--fix knows Debian and Ubuntu, not {self.pretty or 'this system'}"
        return (
            None if self.root else "--fix installs packages and starts the engine: it has to be run as root"
        )


def survey(probe: Probe) -> Host:
    release = _os_release(probe)
    version = release.get("VERSION_ID", "").partition(".")[0]
    distro = release.get("ID", "")
    apt_knows = probe.run("apt-cache", "policy", *NAMES) if distro in ("debian", "ubuntu") else None
    return Host(
        root=probe.root,
        distro=distro,
        pretty=release.get("PRETTY_NAME", ""),
        version=int(version) if version.isdecimal() else None,
        codename=release.get("VERSION_CODENAME", ""),
        systemd=probe.exists(Path("/run/systemd/system")),
        daemon_json=_read(probe, Path(DAEMON_JSON)),
        dockerd=_dockerd(probe),
        running=len(probe.run("docker", "ps", "--quiet").stdout.split()),
        sources=apt.parse_sources(_apt_files(probe)),
        pin=_read(probe, Path(apt.DONOR_PIN)),
        packages=apt.parse_policy(apt_knows.stdout) if apt_knows else {},
    )


def _read(probe: Probe, path: Path) -> str | None:
    """A file's text; None also for one that only root may read: without root nothing is changed anyway."""
    try:
        return probe.read(path)
    except OSError:
        return None


def _os_release(probe: Probe) -> dict[str, str]:
    text = _read(probe, Path("/etc/os-release")) or ""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key: (shlex.split(value) or [""])[0] for key, _, value in pairs}


def _apt_files(probe: Probe) -> dict[str, str]:
    folder = ETC_APT / "sources.list.d"
    paths = [
        ETC_APT / "sources.list",
        *(folder / n for n in probe.listing(folder) if n.endswith((".list", ".sources"))),
    ]
    return {str(path): text for path in paths if (text := _read(probe, path))}


def _dockerd(probe: Probe) -> tuple[int, tuple[str, ...]] | None:
    for file in PID_FILES:
        pid = (_read(probe, file) or "").strip()
        if not pid.isdecimal():
            continue
        # An empty word is a word: `--bip ""`.
        argv = tuple((_read(probe, Path(f"/proc/{pid}/cmdline")) or "").removesuffix("\0").split("\0"))
        if Path(argv[0]).name == "dockerd":
            return int(pid), argv
    return None
