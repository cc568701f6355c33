"""Requests to one registry: by TLS or not, through which proxy, logged in, and patient with what passes.

TLS: every registry is spoken to by HTTPS, with its certificate checked. One on
loopback is asked first whether it speaks TLS at all, by a handshake that sends
nothing of ours; if not, and only on loopback, it is plain HTTP.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import ipaddress
import random
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import should_bypass_proxies

from imgbuild import __version__
from imgbuild.logins import authorization, find_login
from imgbuild.reference import api_host
from imgbuild.refusals import TOO_MANY, RefusedError, SlowError, root, words
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

CHUNK = 1 << 20
_PASSING = (TOO_MANY, 500, 502, 503, 504)
"""What a registry says when the same request may succeed a moment later."""
_LONGEST_HANDSHAKE = 5.0  # seconds; who is silent that long on loopback awaits a request, so it is HTTP
_HTTPS_PORT, _HTTP_PORT = 443, 80


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, and how often to try again. Seconds."""

    connect: float = 10.0
    silence: float = 120.0
    slowest: int = 2000
    """Bytes a second, on average over as long as silence is borne: less is as good as silence."""
    tries: int = 5
    timeouts: int = 2
    """Tries after which a silent registry is given up: each costs as long as silence is borne."""
    pause: float = 0.5
    """Before the second try; doubled before each more, and drawn by chance from half of it to all of it, so that many
    who were turned away together do not come back together."""
    longest: float = 60.0
    """What is waited at most when a registry says how long."""


AT_ONCE = Patience(tries=1)


class Connection:
    """To one registry, for one set of scopes. `env` says where docker's config.json, certificates and proxies are.

    Raises requests' own exceptions when the connection fails, and RefusedError for an answer that is no success.
    """

    def __init__(
        self,
        host: str,
        scopes: Sequence[str],
        *,
        env: Mapping[str, str],
        patience: Patience | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.host = host
        self.patience = patience or Patience()
        self._scopes, self._env, self._say = tuple(scopes), env, say
        settings = read_settings(env)
        self._proxies = {
            variable.removesuffix("_PROXY").lower(): value
            for variable, value in settings.proxies
            if variable != "NO_PROXY"
        }
        self._no_proxy = dict(settings.proxies).get("NO_PROXY", "")
        self.session = requests.Session()
        self.session.trust_env = False  # `env` is the environment; and no password from a .netrc
        self.session.verify = str(settings.ca_bundle) if settings.ca_bundle else True
        self.session.headers.update({"User-Agent": f"imgbuild/{__version__}", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _BigBlocks())
        self._authorization: str | None = None
        self.answered = False
        """Whether it ever did: before that, a wrong name is more likely than a passing trouble."""

    def close(self) -> None:
        self.session.close()

    @functools.cached_property
    def origin(self) -> str:
        """Scheme and host, without a slash at the end."""
        plain = on_loopback(self.host) and not _speaks_tls(self.host, self.patience.connect)
        return f"{'http' if plain else 'https'}://{api_host(self.host)}"

    def send(
        self,
        method: str,
        url: str,
        good: Collection[int],
        *,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """`good` are the statuses that are an answer. Logs in when the registry asks, and again when a token ends."""
        answer = self._once(method, url, headers or {}, body, stream=stream)
        challenge = answer.headers.get("WWW-Authenticate")
        if challenge and answer.status_code in (401, 403):
            answer.close()
            self._authorization = self._log_in(challenge)
            answer = self._once(method, url, headers or {}, body, stream=stream)
        if answer.status_code in good:
            return answer
        with answer:
            raise RefusedError(answer.status_code, words(answer), wait=_wait(answer))

    def attempts(self) -> Attempts:
        return Attempts(self, self._say)

    def pieces(self, answer: requests.Response) -> Iterator[bytes]:
        """The body as it comes; SlowError when too little comes."""
        begun, came = time.monotonic(), 0
        while True:
            try:
                piece = answer.raw.read1(CHUNK, decode_content=False)
            except urllib3.exceptions.ReadTimeoutError as e:
                raise requests.ReadTimeout(e) from e
            except urllib3.exceptions.HTTPError as e:
                raise requests.exceptions.ChunkedEncodingError(e) from e
            if not piece:
                return
            yield piece
            came += len(piece)
            now = time.monotonic()
            if now - begun > self.patience.silence:
                if came < self.patience.slowest * (now - begun):
                    raise SlowError(f"{came} bytes in {now - begun:.0f} s")
                begun, came = now, 0

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
        *,
        stream: bool,
    ) -> requests.Response:
        own = dict(headers)
        if self._authorization and url.startswith(f"{self.origin}/"):
            own["Authorization"] = self._authorization
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        follow = method in ("GET", "HEAD")
        answer = self._ask(method, url, headers=own, data=body, stream=stream, allow_redirects=follow)
        self.answered = True
        return answer

    def _ask(self, method: str, url: str, **more: Any) -> requests.Response:
        wait = (self.patience.connect, self.patience.silence)
        return self.session.request(method, url, timeout=wait, proxies=self.proxies_for(url), **more)

    def proxies_for(self, url: str) -> dict[str, str]:
        if not self._proxies or on_loopback(urlsplit(url).netloc):
            return {}
        return {} if should_bypass_proxies(url, no_proxy=self._no_proxy) else self._proxies

    def _log_in(self, challenge: str) -> str | None:
        return authorization(
            challenge,
            find_login(self.host, self._env),
            self._scopes,
            plain=on_loopback(self.host),
            ask=self._ask,
        )


class Attempts:
    """At one thing: counts what failed, waits, and gives up."""

    def __init__(self, connection: Connection, say: Callable[[str], None] | None) -> None:
        self._connection, self._say = connection, say
        self._failed = self._timeouts = 0

    def run(self, action: Callable[[], Any]) -> Any:
        """What `action` returns, tried again where that may help."""
        while True:
            try:
                return action()
            except (requests.RequestException, RefusedError) as e:
                self.failed(e)

    def failed(self, error: requests.RequestException | RefusedError) -> None:
        """Wait before another try, or raise the error when there is none to be made."""
        patience = self._connection.patience
        self._failed += 1
        self._timeouts += isinstance(error, (requests.Timeout, SlowError))
        asked = error.wait if isinstance(error, RefusedError) else None
        if (
            self._failed >= patience.tries
            or self._timeouts >= patience.timeouts
            or not self._passing(error)
            or (asked or 0) > patience.longest
        ):
            raise error
        pause = asked if asked is not None else self._pause()
        if self._say:
            what = (
                str(error) if isinstance(error, RefusedError) else type(root(error)).__name__
            )  # a hint, not the verdict
            self._say(
                f"{self._connection.host}: {what}; once more in {pause:.1f} s ({self._failed + 1} of {patience.tries})"
            )
        time.sleep(pause)

    def progressed(self) -> None:
        """Something came through: what failed before no longer counts."""
        self._failed = self._timeouts = 0

    def _pause(self) -> float:
        patience = self._connection.patience
        whole = min(patience.longest, patience.pause * 2.0 ** (self._failed - 1))
        return whole * random.uniform(0.5, 1)  # noqa: S311  (no secret)

    def _passing(self, error: requests.RequestException | RefusedError) -> bool:
        if isinstance(error, RefusedError):
            return error.status in _PASSING
        cause = root(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        if isinstance(cause, (ConnectionRefusedError, socket.gaierror)):
            return self._connection.answered
        return isinstance(
            error,
            (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, SlowError),
        )


class _BigBlocks(HTTPAdapter):
    """Bodies are sent in pieces of 1 MiB: urllib3's own 16 KiB cost time with gigabytes."""

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more, blocksize=CHUNK)


def on_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _speaks_tls(host: str, timeout: float) -> bool:
    """Whether who listens there answers a TLS handshake; whose certificate it is, the first request checks."""
    parts = urlsplit(f"//{host}")
    name = parts.hostname or "localhost"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = parts.port or (_HTTPS_PORT if _listens(name, _HTTPS_PORT) else _HTTP_PORT)
    with contextlib.suppress(OSError), socket.create_connection((name, port), timeout=timeout) as plain:
        plain.settimeout(min(timeout, _LONGEST_HANDSHAKE))
        with context.wrap_socket(plain, server_hostname=name):
            return True
    return False


def _listens(name: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((name, port), timeout=1):
        return True
    return False


def _wait(answer: requests.Response) -> float | None:
    """Retry-After in seconds, which is a number or a date; None where it is neither."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    now = datetime.now(tz=until.tzinfo or UTC)
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())
