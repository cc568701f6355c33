"""The client's side of a websocket (RFC 6455), as much of it as ComfyUI's /ws needs. Standard library only.

Plain TCP and text or binary messages; no extensions, no TLS. Why not a library: the
client is meant to be copied, into an image as well, and needs nothing but Python.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_LARGEST = 256 << 20  # bytes of one message: a preview is some kB, a picture some MB


class SocketError(OSError):
    """The other side does not speak websocket, or has closed the connection."""


class Message(NamedTuple):
    kind: Literal["text", "binary"]
    data: bytes


class Socket:
    """One connection. Not for several threads at once."""

    def __init__(self, url: str, *, timeout: float = 30) -> None:
        """`url` is ws://host:port/path?query. OSError (SocketError among them) when it cannot be opened."""
        parts = urlsplit(url)
        if parts.scheme != "ws" or parts.hostname is None:
            raise ValueError(f"{url}: only ws://host:port/path")
        self._buffer = b""
        self._fragments: list[bytes] = []
        self._kind: Literal["text", "binary"] = "text"
        self.raw = socket.create_connection((parts.hostname, parts.port or 80), timeout)
        try:
            self._shake_hands(parts.netloc, f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
        except BaseException:
            self.raw.close()
            raise

    def _shake_hands(self, host: str, resource: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {resource} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self.raw.sendall("\r\n".join((*lines, "", "")).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._more()
            if len(self._buffer) > 1 << 16:
                raise SocketError("no websocket: an answer without an end of its headers")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        if " 101" not in status:
            raise SocketError(f"no websocket: {status}")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        wanted = base64.b64encode(hashlib.sha1(f"{key}{_MAGIC}".encode(), usedforsecurity=False).digest())
        if headers.get("sec-websocket-accept") != wanted.decode():
            raise SocketError("no websocket: the answer belongs to another question")

    def receive(self, timeout: float | None = None) -> Message:
        """The next message. TimeoutError after `timeout` seconds; SocketError when the other side has closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            final, kind, data = self._frame(deadline)
            if kind == _PING:
                self._send(_PONG, data)
            elif kind == _CLOSE:
                self.close()
                raise SocketError(f"closed by the server{f': {data[2:].decode()}' if data[2:] else ''}")
            elif kind != _PONG:
                if kind != _CONTINUATION:
                    self._kind = "text" if kind == _TEXT else "binary"
                self._fragments.append(data)
                if sum(map(len, self._fragments)) > _LARGEST:
                    raise SocketError("a message without an end")
                if final:
                    whole, self._fragments = b"".join(self._fragments), []
                    return Message(self._kind, whole)

    def send(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def close(self) -> None:
        try:
            self._send(_CLOSE, struct.pack(">H", 1000))
        except OSError:
            pass  # the other side was faster
        finally:
            self.raw.close()

    def _frame(self, deadline: float | None) -> tuple[bool, int, bytes]:
        """One frame, whole: what has come of one that a timeout cuts off stays for the next call."""
        while True:
            found = _cut(self._buffer)
            if found:
                final, kind, data, self._buffer = found
                return final, kind, data
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no message in time")
                self.raw.settimeout(left)
            self._more()

    def _more(self) -> None:
        chunk = self.raw.recv(1 << 16)
        if not chunk:
            raise SocketError("the connection has ended")
        self._buffer += chunk

    def _send(self, kind: int, data: bytes) -> None:
        size = len(data)
        head = bytes([0x80 | kind])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        mask = os.urandom(4)  # a client has to
        self.raw.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))


def _cut(buffer: bytes) -> tuple[bool, int, bytes, bytes] | None:
    """The first frame of a buffer and what is left; None while it is not whole."""
    if len(buffer) < 2:
        return None
    first, second = buffer[0], buffer[1]
    if second & 0x80:
        raise SocketError("a server must not mask")
    size, begin = second & 0x7F, 2
    if size == 126:
        if len(buffer) < 4:
            return None
        size, begin = struct.unpack_from(">H", buffer, 2)[0], 4
    elif size == 127:
        if len(buffer) < 10:
            return None
        size, begin = struct.unpack_from(">Q", buffer, 2)[0], 10
    if size > _LARGEST:
        raise SocketError(f"a frame of {size} bytes")
    if len(buffer) < begin + size:
        return None
    return bool(first & 0x80), first & 0x0F, buffer[begin : begin + size], buffer[begin + size :]
