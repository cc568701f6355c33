"""HTTP as a download needs it: redirects that keep tokens at home, what a server says of a file, how long to wait."""

from __future__ import annotations

import email.utils
import random
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from comfywork import __version__
from comfywork.models.errors import DeniedError, UnreachableError, WrongFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REDIRECTS = 10
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_AGAIN = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 527, 529)


class TransientError(Exception):
    """Trying again may help; `after` are the seconds that the server asks for, if it does."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to try again. Seconds."""

    failures: int = 8
    """In a row, with not one new byte between them."""
    first: float = 0.5
    most: float = 60.0
    asked: float = 900.0
    """The longest wait that a server may ask for."""

    def pause(self, failures: int, asked: float | None) -> float:
        """Before the next try, after so many in a row; what the server asks for wins."""
        if asked is not None:
            return min(max(asked, 0.0), self.asked)
        return float(min(self.most, self.first * 2 ** (failures - 1)) * random.uniform(0.75, 1.25))  # noqa: S311


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a server says of a file, in headers."""

    size: int | None = None
    """Bytes of the whole file."""
    etag: str | None = None
    """A strong one, of the server that sends the bytes; for If-Range."""
    sha256: str | None = None
    """As Hugging Face states it (X-Linked-Etag) for a file in its large file storage."""
    revision: str | None = None
    """The commit, as Hugging Face states it."""


def client(*, parallel: int, timeout: float = 30.0) -> httpx.Client:
    """Proxies and certificates come from the environment (HTTPS_PROXY, SSL_CERT_FILE), as everywhere."""
    return httpx.Client(
        timeout=httpx.Timeout(timeout, pool=None),
        limits=httpx.Limits(max_connections=parallel + 2, max_keepalive_connections=parallel + 2),
        headers={"User-Agent": f"comfyrun-models/{__version__}", "Accept-Encoding": "identity"},
        follow_redirects=False,
    )


@contextmanager
def request(
    http: httpx.Client, method: str, url: str, headers: Mapping[str, str], token: str | None
) -> Iterator[tuple[httpx.Response, Told]]:
    """The response at the end of all redirects, not yet read.

    The token goes to the first server only: the address that a hub sends one on to has its own signature in it.
    TransientError, DeniedError, WrongFileError and UnreachableError say what an answer means.
    """
    first = urlsplit(url)
    linked: dict[str, str] = {}
    where = url
    for _ in range(_REDIRECTS):
        parts = urlsplit(where)
        home = (parts.scheme, parts.netloc) == (first.scheme, first.netloc)
        sent = dict(headers)
        if token and home and (parts.scheme == "https" or parts.hostname in _LOOPBACK):
            sent["Authorization"] = f"Bearer {token}"
        try:
            with http.stream(method, where, headers=sent) as response:
                for name in ("x-linked-etag", "x-linked-size", "x-repo-commit"):
                    if name in response.headers:
                        linked[name] = response.headers[name]
                if response.is_redirect:
                    where = _next(where, response)
                    continue
                _judge(response, url, home=home)
                yield response, _told(response, linked)
                return
        except httpx.TransportError as error:
            raise TransientError(f"{parts.hostname}: {_reason(error)}") from error
        except httpx.InvalidURL as error:
            raise UnreachableError(
                f"{parts.hostname} sends on to {where[:100]!r}, which is no address"
            ) from error
    raise UnreachableError(f"{first.hostname}: redirects without end")


def _next(where: str, response: httpx.Response) -> str:
    target = str(httpx.URL(where).join(response.headers["location"]))
    parts = urlsplit(target)
    if parts.scheme == "https" or (parts.scheme == "http" and urlsplit(where).scheme == "http"):
        return target
    raise UnreachableError(
        f"{urlsplit(where).hostname} sends on to {parts.scheme}://{parts.hostname}: not encrypted"
    )


def _judge(response: httpx.Response, url: str, *, home: bool) -> None:
    """Raise for an answer that is not the file, nor about it (416)."""
    status = response.status_code
    host = urlsplit(str(response.request.url)).hostname
    if status in (200, 206, 416):
        return
    if status in _AGAIN:
        raise TransientError(f"{host} answers {status} {response.reason_phrase}", _retry_after(response))
    if status in (401, 403):
        if not home:
            # The signature in an address that one was sent on to runs out; a new one comes with the next try.
            raise TransientError(f"{host} answers {status} to an address that it was given")
        raise DeniedError(denial(url, response.headers.get("x-error-code", ""), status))
    raise WrongFileError(f"{host} answers {status} {response.reason_phrase}: it has no such file")


def denial(url: str, code: str, status: int) -> str:
    """What to do about 401 and 403, for people. `code` is what Hugging Face says in X-Error-Code."""
    path, _, _ = urlsplit(url).path.partition("/resolve/")
    host = urlsplit(url).netloc
    page = f"{urlsplit(url).scheme}://{host}{path}"
    if "gated" in code.lower():
        return (
            f"{path.strip('/')} is gated: accept its licence at {page} with your account, then give that account's "
            "token as HF_TOKEN or HF_TOKEN_FILE"
        )
    return (
        f"{host} answers {status}: no access to {path.strip('/') or url}; is HF_TOKEN right, and is its name?"
    )


def _told(response: httpx.Response, linked: Mapping[str, str]) -> Told:
    headers = response.headers
    size = _number(linked.get("x-linked-size"))
    ranged = _RANGE.fullmatch(headers.get("content-range", ""))
    if response.status_code == 206 and ranged:  # noqa: PLR2004
        size = _number(ranged[3]) or size
    elif response.status_code == 200 and "content-encoding" not in headers:  # noqa: PLR2004
        size = _number(headers.get("content-length")) or size
    etag = headers.get("etag")
    stated = linked.get("x-linked-etag", "").removeprefix("W/").strip('"')
    return Told(
        size=size,
        etag=etag if etag and not etag.startswith("W/") else None,
        sha256=stated if _SHA256.fullmatch(stated) else None,
        revision=linked.get("x-repo-commit"),
    )


def range_start(response: httpx.Response) -> int | None:
    """Where the bytes of a 206 begin; None when it does not say so in a way that can be trusted."""
    found = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    # Against the server's own clock, so that a wrong one here changes nothing.
    try:
        now = email.utils.parsedate_to_datetime(response.headers.get("date", ""))
    except ValueError:
        return None
    return max(0.0, (when - now).total_seconds())


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
