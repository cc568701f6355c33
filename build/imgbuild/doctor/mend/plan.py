"""From findings to steps. Pure: what is known of the machine comes in as a Host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.binfmt import BINFMT
from imgbuild.doctor.finding import Mend, Repair
from imgbuild.doctor.mend import apt, packages
from imgbuild.doctor.mend.daemonjson import DAEMON_JSON, with_containerd_store
from imgbuild.doctor.mend.steps import Command, Manual, Register, StartEngine, Step, StopEngine, WriteFile
from imgbuild.doctor.platforms import PLATFORMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgbuild.doctor.finding import Finding
    from imgbuild.doctor.mend.host import Host

APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=120", "--yes")
UPDATE = Command(title="fetch the lists of packages", argv=(*APT_GET, "update"), env=APT_ENV)
PACKAGE_KINDS = frozenset(
    {Mend.ENGINE_PACKAGES, Mend.BINFMT_PACKAGES, Mend.BOOTSTRAP_PACKAGES, Mend.GIT_PACKAGE}
)
ENGINE_KINDS = frozenset({Mend.ENGINE_START, Mend.IMAGE_STORE})


def wants_packages(findings: Iterable[Finding], host: Host) -> bool:
    """Whether a package has to be installed: one that is there already may only have to be used."""
    kinds = {r.kind for f in findings for r in f.repairs}
    return packages.select(packages.needs(kinds, host), host) != packages.Selection()


def ensure(findings: Iterable[Finding], host: Host, *, fresh: bool = False) -> list[Step]:
    """The steps that mend what can be mended, in the order in which they have to be done.

    `fresh`: apt's lists were just fetched. ConfigError when daemon.json cannot be merged into.
    """
    repairs = dict.fromkeys(r for f in findings for r in f.repairs)
    kinds = frozenset(r.kind for r in repairs)
    steps: list[Step] = []
    if kinds & ENGINE_KINDS:
        # First: a package that starts the engine by itself then starts it with these settings.
        steps += _settings(host)
    if kinds & PACKAGE_KINDS:
        steps += _install(kinds, host, fresh=fresh)
    if kinds & ENGINE_KINDS:
        steps += _engine(host)
    steps += _binfmt(repairs)
    return steps


def _settings(host: Host) -> list[Step]:
    text = with_containerd_store(host.daemon_json)
    if text == host.daemon_json:
        return []
    return [
        WriteFile(
            title="turn the containerd image store on, keep other settings", path=Path(DAEMON_JSON), text=text
        )
    ]


def _install(kinds: frozenset[Mend], host: Host, *, fresh: bool) -> list[Step]:
    wanted = packages.needs(kinds, host)
    if host.distro not in ("debian", "ubuntu"):
        return [Manual(title="install with this system's package manager", commands=_in_words(wanted))]
    chosen = packages.select(wanted, host)
    steps: list[Step] = []
    if (chosen.own or chosen.donor) and not fresh:
        steps.append(UPDATE)
    if chosen.own:
        steps.append(_apt_install("install from the distribution", chosen.own))
    if chosen.donor:
        steps += _donor(chosen.donor, host)
    if chosen.nowhere:
        steps.append(
            Manual(
                title=f"{host.pretty} has no new enough version of these: use a newer release, "
                "or the packages of the programs' own makers",
                commands=_in_words(chosen.nowhere),
            )
        )
    return steps


def _donor(names: tuple[str, ...], host: Host) -> list[Step]:
    steps: list[Step] = []
    if not apt.serves_donor(host.sources):
        archive = apt.main_archive(host.sources, host.codename)
        if archive is None:
            return [
                Manual(
                    title=f"no apt source for Debian's main archive of {host.codename or 'this release'} was found: "
                    f"add one for the suite {apt.DONOR}, then: imgbuild doctor --fix"
                )
            ]
        # The keys of newer suites come with updates of the keyring. The pin comes before the source:
        # without it, a newer suite would upgrade the whole system.
        steps += [
            _apt_install("bring the keys of Debian's newer suites", ("debian-archive-keyring",)),
            WriteFile(
                title=f"take nothing from {apt.DONOR} but what is asked for",
                path=Path(apt.DONOR_PIN),
                text=apt.DONOR_PIN_TEXT,
            ),
            WriteFile(
                title=f"add Debian's suite {apt.DONOR}, from where {host.codename} comes from",
                path=Path(apt.DONOR_SOURCE),
                text=apt.donor_source(archive),
            ),
            UPDATE,
        ]
    # NAME/SUITE and not -t SUITE: dependencies then stay in the suite in use wherever that is enough.
    named = tuple(f"{name}/{apt.DONOR}" for name in names)
    return [*steps, _apt_install(f"install from {apt.DONOR}", named)]


def _apt_install(title: str, names: tuple[str, ...]) -> Command:
    return Command(title=title, argv=(*APT_GET, "install", "--no-install-recommends", *names), env=APT_ENV)


def _engine(host: Host) -> list[Step]:
    if host.running:
        return [
            Manual(
                title=f"running containers ({host.running}) keep the engine from being restarted: stop them, then",
                commands=("imgbuild doctor --fix",),
            )
        ]
    if host.systemd:
        return [
            Command(
                title="start the engine with the system",
                argv=("systemctl", "enable", "docker"),
                optional=True,
            ),
            Command(title="start the engine", argv=("systemctl", "restart", "docker"), timeout=120),
        ]
    if host.dockerd:
        pid, argv = host.dockerd
        return [
            StopEngine(title=f"stop dockerd (process {pid}), which runs no containers", pid=pid),
            StartEngine(title="start dockerd again, with the same options", argv=argv),
        ]
    return [StartEngine(title="start dockerd (there is no init system to do it)")]


def _binfmt(repairs: Iterable[Repair]) -> list[Step]:
    steps: list[Step] = []
    kinds = {r.kind for r in repairs}
    if Mend.BINFMT_MOUNT in kinds:
        steps += [
            Command(title="load the kernel's binfmt_misc", argv=("modprobe", "binfmt_misc"), optional=True),
            Command(
                title="mount binfmt_misc", argv=("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
            ),
        ]
    machines = {p.uname: p.elf_machine for p in PLATFORMS.values()}
    for repair in repairs:
        if repair.kind is Mend.BINFMT_REGISTER:
            steps.append(
                Register(
                    title=f"have {repair.about} programs run by QEMU",
                    uname=repair.about,
                    elf_machine=machines[repair.about],
                )
            )
    return steps


def _in_words(wanted: Iterable[packages.Need]) -> tuple[str, ...]:
    return tuple(
        f"{n.package}" + (f", version {minimum.spelled(n.program)} or newer" if n.program else "")
        for n in wanted
    )
