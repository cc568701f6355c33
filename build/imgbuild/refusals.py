"""What goes wrong between here and a registry, told as one RegistryError: what, where, and the next command."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from typing import TYPE_CHECKING

import requests

from imgbuild.errors import RegistryError, UnsoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNAUTHORISED, FORBIDDEN, MISSING, TOO_MANY = 401, 403, 404, 429
_SERVER = 500
_LONGEST_WORDS = 300
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)
"""What a connection that breaks in the middle of a handshake is, in TLS's words."""


class RefusedError(Exception):
    """The registry answered, with a status that is no success. `wait` is what it asks for, in seconds."""

    def __init__(self, status: int, words: str, *, wait: float | None = None) -> None:
        super().__init__(f"{words} (status {status})")
        self.status = status
        self.wait = wait

    @property
    def wants_login(self) -> bool:
        return self.status in (UNAUTHORISED, FORBIDDEN)


class SlowError(requests.RequestException):
    """Bytes come, but so few that nobody should wait for the rest."""


@contextlib.contextmanager
def told(what: str, *, host: str, again: str | None = None) -> Iterator[None]:
    """Whatever fails in the body is raised as one RegistryError that begins with `what`.

    `again` is the command that goes on from there.
    """
    then = f", then: {again}" if again else ""
    try:
        yield
    except RefusedError as e:
        raise RegistryError(f"{what}: {_refused(host, e)}", hint=f"{_answer(host, e)}{then}") from None
    except UnsoundError as e:
        raise RegistryError(
            f"{what}: {host} gave something else than was asked for: {e}",
            hint=f"see what stands between here and {host}, or have it published anew{then}",
        ) from None
    except requests.RequestException as e:
        raise RegistryError(f"{what}: {host} {why(e)}", hint=remedy(e, again)) from None


def _refused(host: str, error: RefusedError) -> str:
    match error.status:
        case 401:
            return f"{host} wants another login: {error}"
        case 403:
            return f"{host} forbids it to this login: {error}"
        case 404:
            return f"{host} does not have it: {error}"
        case 429:
            return f"{host} takes no more requests for now: {error}"
        case status if status >= _SERVER:
            return f"{host} failed: {error}"
        case _:
            return f"{host} refused: {error}"


def _answer(host: str, error: RefusedError) -> str:
    match error.status:
        case 400:
            return f"see what stands between here and {host}: it got something else than was sent"
        case 401 | 403:
            return f"docker login {host}"
        case 404:
            return "see that registry, path and tag are spelt as they are there"
        case 429:
            wait = f"{error.wait:.0f} s" if error.wait else "some minutes"
            return f"wait {wait}, or log in (docker login {host}): who is known may ask more often"
        case status if status >= _SERVER:
            return f"see the log of {host}"
        case _:
            return f"see what {host} allows"


def words(answer: requests.Response) -> str:
    """What a registry says of an error, on one line."""
    try:
        said = "; ".join(str(e.get("message") or e["code"]) for e in answer.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException):
        said = ""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", said or answer.reason or "no reason given")[:_LONGEST_WORDS]


def why(error: requests.RequestException) -> str:
    """The end of a sentence that begins with the registry's name."""
    cause = root(error)
    match error:
        case SlowError():
            why = f"became too slow: {error}"
        case _ if isinstance(cause, ssl.SSLCertVerificationError):
            why = f"has a certificate that is not trusted here ({cause.verify_message or cause.reason})"
        case requests.exceptions.SSLError() if not isinstance(cause, _HUNG_UP):
            why = "cannot be spoken to by TLS"
        case requests.exceptions.ProxyError():
            why = "cannot be reached through the proxy"
        case requests.exceptions.ConnectTimeout():
            why = f"did not answer{_seconds(error)}"
        case requests.exceptions.Timeout():
            why = f"fell silent{_seconds(error)}"
        case _ if isinstance(cause, ConnectionRefusedError):
            why = "does not run: the connection was refused"
        case _ if isinstance(cause, socket.gaierror):
            why = "is a name that is not known"
        case requests.exceptions.ConnectionError() | requests.exceptions.ChunkedEncodingError():
            reason = None if isinstance(cause, ssl.SSLError) else getattr(cause, "strerror", None)
            why = f"broke the connection{f' ({reason})' if reason else ''}"
        case _:
            why = f"cannot be asked: {error}"
    return why


def _seconds(error: requests.RequestException) -> str:
    """How long was waited, which urllib3 says in its own words."""
    found = re.search(r"timeout=([0-9.]+)", str(error))
    return f" for {float(found[1]):g} s" if found else ""


def remedy(error: requests.RequestException, again: str | None) -> str:
    then = f", then: {again}" if again else ""
    if isinstance(root(error), ssl.SSLCertVerificationError):
        return f"name the bundle with its certificate in SSL_CERT_FILE{then}"
    return f"see that it runs{then}"


def root(error: BaseException) -> BaseException:
    """The exception at the bottom of what requests and urllib3 wrapped."""
    inner = getattr(error, "reason", None) or error.__cause__ or next(iter(error.args[::-1]), None)
    return root(inner) if isinstance(inner, BaseException) else error
