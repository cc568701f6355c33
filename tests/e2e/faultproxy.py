"""A proxy between the tool and a registry that injects faults: real requests, real answers, spoilt on the way.

    with fault_proxy(registry.host, certificate=…, trusted=…) as proxy:
        proxy.inject(status(503), method="PUT", path="/manifests/", times=1)

A fault meets the requests whose method and path fit, so many times, or always
with `times=None`. Everything else passes through as it is.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from registries import Certificate

_CHUNK = 1 << 16
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}


def _as_it_is(piece: bytes, _place: int) -> bytes:
    return piece


@dataclass
class _Fault:
    act: Callable[[Exchange], None]
    method: re.Pattern[str]
    path: re.Pattern[str]
    left: int | None
    met: int = 0


@dataclass
class FaultProxy:
    host: str
    """HOST:PORT, what the tool is told to be the registry."""
    upstream: str
    trusted: ssl.SSLContext | None
    """For an upstream that speaks TLS."""
    seen: list[str] = field(default_factory=list)
    """METHOD PATH of every request, in order."""
    gone: bool = False
    """Whether it hangs up on everybody."""
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(
        self,
        act: Callable[[Exchange], None],
        *,
        method: str = ".*",
        path: str = "",
        times: int | None = None,
    ) -> _Fault:
        """Spoil requests of a method, whose path (with its query) has a part; both are regular expressions."""
        fault = _Fault(act=act, method=re.compile(method), path=re.compile(path), left=times)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """No more faults."""
        self._faults.clear()
        self.seen.clear()
        self.gone = False

    def fault_for(self, method: str, path: str) -> _Fault | None:
        with self._lock:
            self.seen.append(f"{method} {path}")
            for fault in self._faults:
                if fault.left != 0 and fault.method.fullmatch(method) and fault.path.search(path):
                    fault.left = fault.left if fault.left is None else fault.left - 1
                    fault.met += 1
                    return fault
        return None


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request on its way, which a fault may answer, pass on or break."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):
            if self.server.proxy.gone:
                return self.hang_up()
            super().handle_one_request()
        return None

    def do_any(self) -> None:
        fault = self.server.proxy.fault_for(self.command, self.path)
        if fault is None:
            self.forward()
        else:
            fault.act(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

    # What faults are made of

    def forward(
        self,
        *,
        alter: Callable[[bytes, int], bytes] = _as_it_is,
        alter_sent: Callable[[bytes, int], bytes] = _as_it_is,
        stop_after: int | None = None,
        announce: int | None = None,
        pause: float = 0.0,
        chunk: int = _CHUNK,
    ) -> None:
        """Ask upstream and pass on what it says.

        `alter` gets each piece of the answer with its place, `alter_sent` of the request; after `stop_after` bytes the connection breaks; `announce`
        replaces Content-Length; `pause` seconds are waited before each piece of `chunk` bytes.
        """
        connection = self.ask(alter_sent)
        try:
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP | {"content-length", "server", "date"}:
                    self.send_header(name, value)
            size = int(answer.headers.get("Content-Length") or 0)
            self.send_header("Content-Length", str(size if announce is None else min(size, announce)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            place = 0
            if announce == 0:
                return None
            while piece := answer.read(min(chunk, _CHUNK)):
                left = None if stop_after is None else stop_after - place
                piece = piece if announce is None else piece[: max(0, announce - place)]
                if left is not None and len(piece) >= left:
                    self.wfile.write(piece[:left])
                    return self.hang_up()
                if pause:
                    time.sleep(pause)
                self.wfile.write(alter(piece, place))
                self.wfile.flush()
                place += len(piece)
                if announce is not None and place >= announce:
                    break
        finally:
            connection.close()

    def ask(self, alter: Callable[[bytes, int], bytes] = _as_it_is) -> http.client.HTTPConnection:
        """Send the request upstream, body and all."""
        proxy: FaultProxy = self.server.proxy
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(proxy.upstream, context=proxy.trusted, timeout=60)
            if proxy.trusted
            else http.client.HTTPConnection(proxy.upstream, timeout=60)
        )
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                connection.putheader(name, value)  # Host too: the registry's links then lead back here
        connection.endheaders()
        size = left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, _CHUNK))):
            connection.send(alter(piece, size - left))
            left -= len(piece)
        return connection

    def drain(self, most: int | None = None) -> None:
        """Read the request's body, or the beginning of it."""
        left = int(self.headers.get("Content-Length") or 0)
        left = left if most is None else min(left, most)
        while left and (piece := self.rfile.read(min(left, _CHUNK))):
            left -= len(piece)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


# The faults


def status(code: int, message: str = "no, says the proxy", **headers: str) -> Callable[[Exchange], None]:
    """Answer with a status, as registries do."""

    def act(exchange: Exchange) -> None:
        exchange.drain()
        body = json.dumps({"errors": [{"code": "FAULT", "message": message}]}).encode()
        exchange.send_response(code)
        for name, value in headers.items():
            exchange.send_header(name.replace("_", "-"), value)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        if exchange.command != "HEAD":
            exchange.wfile.write(body)

    return act


def truncated(size: int) -> Callable[[Exchange], None]:
    """An answer that is shorter than it was, and says so of itself: a blob damaged at its end."""

    def act(exchange: Exchange) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range") or "")
        exchange.forward(announce=max(0, size - int(asked[1])) if asked else size)

    return act


def broken(size: int) -> Callable[[Exchange], None]:
    """An answer that ends after so many bytes of what it announced."""
    return lambda exchange: exchange.forward(stop_after=size)


def flipped(place: int = 0) -> Callable[[Exchange], None]:
    """An answer in which a bit is another."""

    return lambda exchange: exchange.forward(alter=_flip(place))


def flipped_sent(place: int = 0) -> Callable[[Exchange], None]:
    """A request in which a bit is another."""
    return lambda exchange: exchange.forward(alter_sent=_flip(place))


def _flip(place: int) -> Callable[[bytes, int], bytes]:
    def alter(piece: bytes, start: int) -> bytes:
        at = place - start
        return piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :] if 0 <= at < len(piece) else piece

    return alter


def slow(bytes_per_second: float, *, chunk: int = 64) -> Callable[[Exchange], None]:
    """An answer that drips."""
    return lambda exchange: exchange.forward(pause=chunk / bytes_per_second, chunk=chunk)


def silent(seconds: float) -> Callable[[Exchange], None]:
    """No answer for so long, and then none at all."""

    def act(exchange: Exchange) -> None:
        exchange.drain()
        time.sleep(seconds)
        exchange.hang_up()

    return act


def hangs_up(after: int = 0) -> Callable[[Exchange], None]:
    """The connection breaks when so many bytes of the request's body have come."""

    def act(exchange: Exchange) -> None:
        exchange.drain(after)
        exchange.hang_up()

    return act


def dies(after: int = 0) -> Callable[[Exchange], None]:
    """As `hangs_up`, and from then on nobody is answered any more."""

    def act(exchange: Exchange) -> None:
        exchange.drain(after)
        exchange.server.proxy.gone = True
        exchange.hang_up()

    return act


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if (
            self.tls
        ):  # the handshake is the thread's: a client that never finishes it must not stop the others
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away is no trouble of ours


@contextlib.contextmanager
def fault_proxy(
    upstream: str, *, certificate: Certificate | None = None, trusted: Certificate | None = None
) -> Iterator[FaultProxy]:
    """A proxy in front of the registry at `upstream`.

    `certificate` is what it shows to the tool: without one it speaks plain HTTP. `trusted` is the registry's, when that
    one speaks TLS.
    """
    with _Server(("127.0.0.1", 0), Exchange) as server:
        context = ssl.create_default_context(cafile=str(trusted.file)) if trusted else None
        server.proxy = FaultProxy(host=f"127.0.0.1:{server.server_port}", upstream=upstream, trusted=context)
        if certificate:
            server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(certificate.file, certificate.key)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.proxy
        server.shutdown()
