"""One class and one exit code for each kind of failure.

A message says what happened and where; `hint` says the likely cause or the
next command. They are caught once, in `imgbuild.cli.main`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class ImgbuildError(Exception):
    """Base of everything that is told to a user without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(ImgbuildError):
    """The matrix, a template, an option or the machine's settings are wrong."""

    exit_code = 2


class SelectionError(ImgbuildError):
    """Nothing, or nothing known, was selected."""

    exit_code = 3


class DriftError(ImgbuildError):
    """A lock or a rendered file no longer matches what it was made from."""

    exit_code = 4


class EngineError(ImgbuildError):
    """The container engine is missing, too old, unreachable, or died."""

    exit_code = 5


class BuildError(ImgbuildError):
    """The engine ran the build and the build failed."""

    exit_code = 6


class VerificationError(ImgbuildError):
    """An image or wheel is not what its plan says."""

    exit_code = 7


class TestsFailedError(ImgbuildError):
    """The image was built, and its tests failed."""

    exit_code = 8


class RegistryError(ImgbuildError):
    """A registry refused or did not answer."""

    exit_code = 9


class NetworkError(ImgbuildError):
    """A package index, an archive or an upstream host cannot be reached."""

    exit_code = 10


class DiskError(ImgbuildError):
    """The disk is full, or too full for what was asked."""

    exit_code = 11


class UnsoundError(Exception):
    """Content is not what its name, its digest or its record says; who asked for it tells of what, and the remedy."""


class DeploymentError(ImgbuildError):
    """A container was started and does not serve."""

    exit_code = 12


INTERRUPTED = 130


def nearest(name: str, candidates: object) -> str | None:
    """The candidate most like `name`, or None when none is close."""
    import difflib  # noqa: PLC0415  (only on the way to an error)

    names = sorted(str(c) for c in candidates)  # type: ignore[attr-defined]
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return found[0]
    folded = name.casefold()
    return next((n for n in names if folded and (folded in n.casefold() or n.casefold() in folded)), None)


def first_mistake(error: ValidationError) -> str:
    """The first line of what pydantic found, with its place."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
