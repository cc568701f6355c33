"""What can go wrong with models, and with which exit code a command ends then."""

from __future__ import annotations

from comfywork.errors import ComfyworkError


class WrongFileError(ComfyworkError):
    """What is here, or what the server has, is not what the list says."""


class UnreachableError(ComfyworkError):
    """A server does not answer, or breaks off again and again: the same call may succeed later."""

    exit_code = 69


class PlaceError(ComfyworkError):
    """The folder of the models cannot take them: no room, not writable, no such place."""

    exit_code = 69


class BusyError(ComfyworkError):
    """Another pull works in the same folder."""

    exit_code = 75


class DeniedError(ComfyworkError):
    """The server wants a token, or the licence accepted first."""

    exit_code = 77


class StoppedError(ComfyworkError):
    """Ctrl-C or SIGTERM; what was fetched is kept."""

    exit_code = 130
