"""What a check has to say, and what could be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Cause(StrEnum):
    """What an error is about; each has an exit code (`comfyrun.errors`)."""

    HARDWARE = "hardware"
    KERNEL = "kernel"
    MACHINE = "machine"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; `remedy` holds commands or short sentences for a person."""

    check: str
    severity: Severity
    message: str
    remedy: tuple[str, ...] = ()
    cause: Cause | None = None
    """Of an error."""

    @property
    def line(self) -> str:
        """Message and remedy as one line of a log."""
        return "; ".join((self.message, *self.remedy))


def ok(check: str, message: str) -> Finding:
    return Finding(check=check, severity=Severity.OK, message=message)


def info(check: str, message: str, *remedy: str) -> Finding:
    return Finding(check=check, severity=Severity.INFO, message=message, remedy=remedy)


def warning(check: str, message: str, *remedy: str) -> Finding:
    return Finding(check=check, severity=Severity.WARNING, message=message, remedy=remedy)


def error(check: str, cause: Cause, message: str, *remedy: str) -> Finding:
    return Finding(check=check, severity=Severity.ERROR, message=message, remedy=remedy, cause=cause)
