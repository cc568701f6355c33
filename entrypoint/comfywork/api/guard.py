"""Before any handler runs: the token, the size of the body, the headers of every answer.

Pure ASGI, so that nothing of a refused request's body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from typing import TYPE_CHECKING

from comfywork.api.problems import problem
from comfywork.api.tokens import hash_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from comfywork.api.tokens import Grant, Tokens

MAKE_HINT = "whoever runs the queue makes one: comfyrun api token TENANT"

_LINGER = 3.0  # seconds, and
_THROWN = 32_000_000  # bytes of a refused body that are read and thrown away
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class TooLargeBodyError(Exception):
    """More arrives than was allowed, or announced."""


class Guard:
    """`limit(path)`: bytes of a body there. `metrics_token` opens /metrics, and nothing else."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens, limit: Callable[[str], int], metrics_token: str | None
    ) -> None:
        self._app, self._tokens, self._limit = app, tokens, limit
        self._metrics = hash_of(metrics_token) if metrics_token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        receive, send = body.receive, body.lingering(_with_headers(send))
        path = str(scope["path"])
        if path.startswith("/v1/") or (path == "/metrics" and scope["method"] in ("GET", "HEAD")):
            refusal = self._enter(scope, path)
            if refusal is not None:
                status, detail, hint = refusal
                headers = {"WWW-Authenticate": 'Bearer realm="comfywork"'} if status == 401 else {}  # noqa: PLR2004
                await problem(status, detail, hint, headers)(scope, receive, send)
                return
        await self._measured(scope, receive, send, self._limit(path))

    def _enter(self, scope: Scope, path: str) -> tuple[int, str, str] | None:
        """Why not; or the grant in the request's state."""
        given = _bearer(scope)
        if given is None:
            return 401, "a bearer token is wanted: Authorization: Bearer TOKEN", MAKE_HINT
        if path == "/metrics" and self._metrics and hmac.compare_digest(self._metrics, hash_of(given)):
            return None
        grant = self._tokens.grant(given)
        if grant is None:
            return 401, "nobody has this token", MAKE_HINT
        if path == "/metrics" and not grant.admin:
            return 403, "metrics are for METRICS_TOKEN and admins", "they tell of every tenant"
        scope.setdefault("state", {})["grant"] = grant
        return None

    async def _measured(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        announced = _header(scope, b"content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > limit):
            await _too_large(limit)(scope, receive, send)
            return
        arrived, begun = 0, False

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > limit:
                    raise TooLargeBodyError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLargeBodyError:
            if begun:
                raise
            await _too_large(limit)(scope, receive, send)


class _Body:
    """A request's body, of which the rest is read and thrown away before the answer to it ends.

    A connection that is closed with bytes unread is reset, and the client then often sees that instead of the answer.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self._more = receive, True

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    def lingering(self, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body") and self._more:
                await send({**message, "more_body": True})
                await self._rest()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return wrapped

    async def _rest(self) -> None:
        thrown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while self._more and thrown < _THROWN:
                    thrown += len((await self.receive()).get("body", b""))


def grant_of(scope: Scope) -> Grant:
    found: Grant = scope["state"]["grant"]
    return found


def _too_large(limit: int) -> ASGIApp:
    return problem(
        413, f"a body of at most {limit} bytes is taken here", "pictures are inputs: POST /v1/inputs",
        {"Connection": "close"},
    )  # fmt: skip


def _bearer(scope: Scope) -> str | None:
    scheme, _, token = (_header(scope, b"authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _header(scope: Scope, name: bytes) -> str | None:
    found = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else None


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            present = {key.lower() for key, _ in headers}
            headers += [
                (key.encode(), value.encode())
                for key, value in _HEADERS.items()
                if key.encode() not in present
            ]
            message = {**message, "headers": headers}
        await send(message)

    return wrapped
