"""What a check has to say, and what could be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Mend(StrEnum):
    """The kinds of repair `doctor --fix` knows; `mend.plan` turns them into steps."""

    ENGINE_PACKAGES = "engine packages"
    ENGINE_START = "start the engine"
    IMAGE_STORE = "containerd image store"
    BINFMT_PACKAGES = "emulator packages"
    BINFMT_MOUNT = "mount binfmt_misc"
    BINFMT_REGISTER = "register a binfmt handler"
    BOOTSTRAP_PACKAGES = "bootstrap packages"
    GIT_PACKAGE = "git"


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One repair; `about` is the handler's architecture in QEMU's spelling where there is one."""

    kind: Mend
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    `remedy` holds commands or short sentences for a person; `repairs` what
    `--fix` can do by itself.
    """

    check: str
    severity: Severity
    what: str
    remedy: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()

    @property
    def fixable(self) -> bool:
        return bool(self.repairs)

    def as_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity.value,
            "what": self.what,
            "remedy": list(self.remedy),
            "fixable": self.fixable,
        }


def ok(check: str, what: str) -> Finding:
    return Finding(check=check, severity=Severity.OK, what=what)


def info(check: str, what: str, *remedy: str) -> Finding:
    return Finding(check=check, severity=Severity.INFO, what=what, remedy=remedy)


def warning(check: str, what: str, *remedy: str, repairs: tuple[Repair, ...] = ()) -> Finding:
    return Finding(check=check, severity=Severity.WARNING, what=what, remedy=remedy, repairs=repairs)


def error(check: str, what: str, *remedy: str, repairs: tuple[Repair, ...] = ()) -> Finding:
    return Finding(check=check, severity=Severity.ERROR, what=what, remedy=remedy, repairs=repairs)
