"""One class and one exit code for each kind of failure; caught once, in `comfyrun.cli.main`.

ComfyUI's own exit code is passed on untouched, and it uses 0, 1, 2 and 255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class ComfyrunError(Exception):
    """What went wrong, one line for each mistake."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class ConfigError(ComfyrunError):
    """A profile, a COMFY_ variable or an argument is wrong: what is asked for is not possible."""

    exit_code = 2


class MachineError(ComfyrunError):
    """What is asked for is possible, but not here and now (a directory, a port, a missing program)."""

    exit_code = 69  # EX_UNAVAILABLE: distinct from everything ComfyUI returns


class HardwareError(ComfyrunError):
    """No GPU that this image can use: none at all, another kind, or one whose driver is too old or broken."""

    exit_code = 76


class KernelError(ComfyrunError):
    """An attention kernel does not work on this GPU, and COMFY_STRICT makes that an error."""

    exit_code = 77


BROKEN = 75
"""ComfyUI runs but can do no more jobs: the GPU's context is lost, or its worker has ended. EX_TEMPFAIL: try again."""

INTERRUPTED = 130


def nearest(name: str, candidates: Iterable[str]) -> str:
    """` (did you mean X?)` for the candidate most like `name`, or nothing when none is close."""
    import difflib  # noqa: PLC0415  (only on the way to an error)

    known = sorted(candidates)
    found = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""
