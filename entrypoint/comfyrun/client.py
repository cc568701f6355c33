"""The few requests that comfyrun makes of the server beside it.

By hand, over a socket: http.client alone would double what a health check costs every thirty seconds.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT = 1 << 20  # bytes; the answers have a few hundred
_OK = 200


class NoAnswerError(Exception):
    """Nobody is there, or what came is no answer. The message begins with what was asked."""


class RefusedError(NoAnswerError):
    """Nobody listens there (yet)."""


@dataclass(frozen=True, kw_only=True)
class Server:
    host: str
    port: int
    tls: bool


def local(listen: Sequence[str], port: int, *, tls: bool) -> Server:
    """How a server that listens there is reached from beside it."""
    host = listen[0] if listen else ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return Server(host=host, port=port, tls=tls)


def get(server: Server, path: str, deadline: float) -> object:
    """The JSON that the server answers. Raises NoAnswerError, at `deadline` (time.monotonic) at the latest."""
    where = f"GET {path} on port {server.port}"
    body = _ask(server, "GET", path, None, where, deadline)
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        raise NoAnswerError(f"{where}: the answer is not JSON") from None
    return answer


def post(server: Server, path: str, value: object, deadline: float) -> None:
    """Raises NoAnswerError, as `get` does."""
    where = f"POST {path} on port {server.port}"
    _ask(server, "POST", path, json.dumps(value).encode(), where, deadline)


def _ask(server: Server, method: str, path: str, body: bytes | None, where: str, deadline: float) -> bytes:
    head = [f"{method} {path} HTTP/1.0", f"Host: {server.host}:{server.port}"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    begin = time.monotonic()
    try:
        with _connect(server, _left(deadline)) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode() + (body or b""))
            raw = _read(connection, deadline)
    except TimeoutError:
        raise NoAnswerError(f"{where}: no answer in {max(deadline - begin, 0):.0f} s") from None
    except ConnectionRefusedError as error:
        raise RefusedError(f"{where}: {error}") from None
    except (OSError, UnicodeError, OverflowError) as error:
        raise NoAnswerError(f"{where}: {error}") from None
    status, _, rest = raw.partition(b"\r\n\r\n")
    words = status.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():  # noqa: PLR2004
        raise NoAnswerError(f"{where}: the answer is not HTTP")
    if int(words[1]) != _OK:
        raise NoAnswerError(f"{where}: answers {int(words[1])}")
    return rest


def _connect(server: Server, timeout: float) -> socket.socket:
    connection = socket.create_connection((server.host, server.port), timeout)
    if not server.tls:
        return connection
    import ssl  # noqa: PLC0415

    # It asks itself: there is nobody between to be kept out, and the name never matches 127.0.0.1.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    try:
        return context.wrap_socket(connection, server_hostname=server.host)
    except BaseException:
        connection.close()
        raise


def _read(connection: socket.socket, deadline: float) -> bytes:
    """All that comes; a socket's own timeout would start again with each byte."""
    parts, size = [], 0
    while size < _LIMIT:
        connection.settimeout(_left(deadline))
        part = connection.recv(65536)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _left(deadline: float) -> float:
    # Zero would mean not to wait at all, and is another error.
    return max(deadline - time.monotonic(), 0.001)
