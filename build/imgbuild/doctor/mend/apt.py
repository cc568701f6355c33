"""Reading apt's sources and what it could install. Pure; no address stands here, only in the machine's own files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DONOR = "trixie"
"""The oldest Debian suite whose docker, buildx, compose and QEMU are all new enough."""

DONOR_SOURCE = f"/etc/apt/sources.list.d/imgbuild-{DONOR}.sources"
DONOR_PIN = f"/etc/apt/preferences.d/imgbuild-{DONOR}"
# 100: nothing comes from there by itself, but what was taken from there gets its updates from there.
DONOR_PIN_TEXT = f"Package: *\nPin: release n={DONOR}\nPin-Priority: 100\n"

# Options of an entry that say how to trust and reach the archive, not what to take from it.
KEPT_FIELDS = ("Signed-By", "Trusted", "Check-Valid-Until", "Check-Date", "Allow-Insecure")
RELEASES = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "oldoldstable", "testing"}
)
ALIASES = frozenset({"stable", "oldstable", "oldoldstable", "testing"})
NOT_MAIN = re.compile(r"[-/](security|updates|backports|proposed|debug)|/updates\b|security", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One enabled entry for binary packages."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """In deb822 spelling (Signed-By); a value may go over several lines."""


@dataclass(frozen=True, kw_only=True)
class Package:
    installed: str | None = None
    candidate: str | None = None


def parse_sources(files: Mapping[str, str]) -> tuple[Source, ...]:
    """The entries in files of apt, by name: `*.sources` in deb822, everything else in one-line form."""
    found: list[Source] = []
    for name, text in sorted(files.items()):
        found.extend(_deb822(text) if name.endswith(".sources") else _one_line(text))
    return tuple(found)


def main_archive(sources: Iterable[Source], codename: str) -> Source | None:
    """The entry that serves Debian's main archive; of the suite in use, where one says so.

    A half upgraded machine has a newer name in os-release than in its sources:
    the archive is the same.
    """
    fitting = [
        s
        for s in sources
        if "main" in s.components
        and not RELEASES.isdisjoint(s.suites)
        and not any(uri.startswith("cdrom:") or NOT_MAIN.search(uri) for uri in s.uris)
    ]
    return max(
        fitting,
        key=lambda s: (codename in s.suites, any(x in ALIASES for x in s.suites)),
        default=None,
    )


def serves_donor(sources: Iterable[Source]) -> bool:
    return any(DONOR in s.suites and "main" in s.components for s in sources)


def donor_source(archive: Source) -> str:
    """A deb822 entry for the donor suite, from where `archive` comes from."""
    lines = ["Types: deb", f"URIs: {' '.join(archive.uris)}", f"Suites: {DONOR}", "Components: main"]
    lines += [f"{name}: {value}" for name in KEPT_FIELDS if (value := archive.options.get(name))]
    return "\n".join(lines) + "\n"


def parse_policy(text: str) -> dict[str, Package]:
    """What `apt-cache policy NAME…` prints; a package that apt does not know is absent from it."""
    found: dict[str, Package] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            name = line[:-1]
            found[name] = Package()
        elif name and (m := re.match(r"  (Installed|Candidate): (.+)$", line)):
            value = None if m.group(2) == "(none)" else m.group(2)
            old = found[name]
            found[name] = (
                Package(installed=value, candidate=old.candidate)
                if m.group(1) == "Installed"
                else Package(installed=old.installed, candidate=value)
            )
    return found


def _deb822(text: str) -> list[Source]:
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").strip().casefold() in ("no", "false", "0", "off"):
            continue
        found.append(
            Source(
                uris=tuple(fields.get("uris", "").split()),
                suites=tuple(suite.rstrip("/") for suite in fields.get("suites", "").split()),
                components=tuple(fields.get("components", "").split()),
                options={n: fields[n.casefold()] for n in KEPT_FIELDS if n.casefold() in fields},
            )
        )
    return found


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += "\n" + line
        elif ":" in line:
            key, _, value = line.partition(":")
            name = key.strip().casefold()
            fields[name] = value.strip()
    return fields


ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)$"
)


def _one_line(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        m = ONE_LINE.match(line.partition("#")[0].strip())
        if m is None:
            continue
        given = dict(word.partition("=")[::2] for word in (m["options"] or "").split())
        found.append(
            Source(
                uris=(m["uri"],),
                suites=(m["suite"].rstrip("/"),),
                components=tuple(m["components"].split()),
                options={
                    n: given[n.casefold()].replace(",", " ") for n in KEPT_FIELDS if n.casefold() in given
                },
            )
        )
    return found
