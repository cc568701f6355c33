"""What can go wrong, and with which exit code a command ends then."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERRUPTED = 130


class ComfyworkError(Exception):
    """A message for a person: what happened, where, and the next step as `hint`."""

    exit_code = 1

    def __init__(self, *messages: str, hint: str = "") -> None:
        super().__init__("\n".join(messages))
        self.messages = messages
        self.hint = hint


class JobFailedError(ComfyworkError):
    """The job that was asked for did not succeed."""


class ConfigError(ComfyworkError):
    """A setting, an argument or a workflow is wrong; nothing was done."""

    exit_code = 2


class QueueError(ComfyworkError):
    """The queue cannot be used now: not reached, full, still loading."""

    exit_code = 69


class LimitError(ComfyworkError):
    """A tenant's limit is reached; the same call may succeed later."""

    exit_code = 75

    def __init__(self, *messages: str, hint: str = "", after: float = 1.0) -> None:
        super().__init__(*messages, hint=hint)
        self.after = after
        """Seconds after which trying again makes sense."""


class RefusedError(ComfyworkError):
    """The password, the token or the tenant does not allow it."""

    exit_code = 77


class UnknownJobError(ComfyworkError):
    """No such job, or not this tenant's."""

    exit_code = 2


class ConflictError(ComfyworkError):
    """The job id is taken by another workflow, or the job's state does not allow it."""

    exit_code = 2


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
