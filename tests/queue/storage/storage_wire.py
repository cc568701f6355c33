"""A TCP connection that breaks as told: between a client and a server, without either knowing."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.'
    b"</Message></Error>"
)
_RESET = struct.pack("ii", 1, 0)


class Wire:
    """Passes everything through until a fault is set. Counts of a fault go down by one each time that it strikes."""

    def __init__(self, upstream: int, *, certificate: Path | None = None) -> None:
        self._upstream = upstream
        self._context = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.heal()
        self.up()

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def heal(self) -> None:
        self.stalled = False
        self.slow_down = 0
        """So many requests are answered with 503 SlowDown."""
        self.reset_after, self.resets = 0, 0
        """So many connections are reset after this many bytes from the client."""
        self.cut_after, self.cuts = 0, 0
        """So many connections end after this many bytes from the server."""
        self.struck = 0

    def up(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Nobody listens any more, and what was open is reset."""
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.kick()

    def kick(self) -> None:
        with self._lock:
            for one in self._open:
                _reset(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            if self._context:
                client = self._context.wrap_socket(client, server_side=True)
                with self._lock:
                    self._open.add(client)
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                back = threading.Thread(target=self._down, args=(server, client), daemon=True)
                back.start()
                self._up(client, server)
                back.join()
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                while self.stalled and self._listener:
                    time.sleep(0.05)
                if re.match(rb"(GET|PUT|POST|HEAD|DELETE) ", piece) and self._strikes("slow_down"):
                    client.sendall(
                        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                        b"Content-Length: %d\r\n\r\n%b" % (len(_SLOW_DOWN), _SLOW_DOWN)
                    )
                    break
                seen += len(piece)
                if self.resets and seen > self.reset_after and self._strikes("resets"):
                    _reset(client)
                    break
                server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while piece := server.recv(1 << 16):
                if self.cuts and seen + len(piece) > self.cut_after and self._strikes("cuts"):
                    client.sendall(piece[: max(0, self.cut_after - seen)])
                    break
                seen += len(piece)
                client.sendall(piece)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _strikes(self, fault: str) -> bool:
        with self._lock:
            left = getattr(self, fault)
            if left > 0:
                setattr(self, fault, left - 1)
                self.struck += 1
            return bool(left > 0)


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)
