"""Tries the certificate before ComfyUI does: with one that is wrong it stays up, and never listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from comfyrun.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfyrun.launch import File

PURPOSE = "https"
"""Of the two files of a Launch that ComfyUI serves https with, the certificate first."""


def check(files: Sequence[File]) -> None:
    """Raises MachineError when no server could use these; nothing where there are none."""
    pair = [file for file in files if file.purpose == PURPOSE]
    if not pair:
        return
    import ssl  # noqa: PLC0415

    certificate, key = pair
    named = f"{certificate.path} ({certificate.origin}) and {key.path} ({key.origin})"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate.path, key.path, password=_ask)
    except _LockedError:
        raise MachineError(
            f"{key.path} ({key.origin}) is locked with a passphrase, which ComfyUI cannot be told: "
            "give it an unlocked one (openssl pkey -in KEY -out UNLOCKED)"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise MachineError(
                f"{named} do not belong together: give the key that the certificate was made for"
            ) from None
        raise MachineError(
            f"{named} are no certificate and key that https could be served with: both have to be PEM "
            "(they begin with -----BEGIN), a chain with the server's own certificate first"
        ) from None
    except OSError as error:
        raise MachineError(f"{named} cannot be read: {error.strerror or error}") from None


class _LockedError(Exception):
    pass


def _ask() -> NoReturn:
    raise _LockedError
