"""A real HTTP server on loopback that serves files, speaks enough of Hugging Face's, and misbehaves on demand.

Each request for bytes takes the next fault from its file's script; with none left it behaves.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40
BLOCK = 16384


@dataclass(frozen=True)
class Fault:
    """`kind`, and a number that means what the kind wants: bytes, a status, seconds."""

    kind: str
    number: float = 0


@dataclass
class Served:
    """One file of the server."""

    content: bytes
    faults: deque = field(default_factory=deque)
    etag: str | None = None
    lfs: bool = True
    gated: bool = False
    wants_token: str | None = None
    after_change: bytes | None = None
    head_faults: deque = field(default_factory=deque)

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def tag(self):
        return self.etag if self.etag is not None else f'"{self.sha256[:16]}"'

    def change(self, content):
        """What a publisher does who uploads another version."""
        self.content = content


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.repositories: dict[str, dict[str, Served]] = {}
        self.cdn: Server | None = None
        self.log: list[tuple[str, str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, path, content, **more):
        """A file at a plain address."""
        self.files[path] = Served(content, **more)
        return self.files[path]

    def publish(self, repository, file, content, **more):
        """A file of a repository of the hub."""
        served = Served(content, **more)
        self.repositories.setdefault(repository, {})[file] = served
        return served

    def requests(self, method):
        return [(path, headers) for m, path, headers in self.log if m == method]

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.wfile = _Direct(self.connection)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        hub = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if hub:
            self._hub(*hub.groups(), body=body)
        elif path in self.server.files:
            self._file(self.server.files[path], body=body)
        else:
            self._status(404)

    def _hub(self, repository, revision, file, *, body):
        files = self.server.repositories.get(repository)
        if files is None:
            return self._status(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no"})
        if revision not in ("main", COMMIT):
            return self._status(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no"})
        served = files.get(file)
        if served is None:
            return self._status(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no"})
        token = self.headers.get("Authorization", "")
        if served.gated and token != f"Bearer {served.wants_token}":
            return self._status(
                403 if token else 401,
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"},
            )
        if not body and served.head_faults:
            fault = served.head_faults.popleft()
            return self._status(int(fault.number), {"Retry-After": "0"} if fault.number == 429 else {})
        headers = {"X-Repo-Commit": COMMIT}
        if not served.lfs:
            headers["ETag"] = f'"{hashlib.sha1(served.content).hexdigest()}"'
            return self._file(served, body=body, more=headers)
        headers |= {"X-Linked-Etag": f'"{served.sha256}"', "X-Linked-Size": str(len(served.content))}
        cdn = self.server.cdn
        if cdn is None:
            return self._file(served, body=body, more=headers)
        cdn.files[f"/lfs/{repository}/{file}"] = served
        return self._status(302, headers | {"Location": f"{cdn.url}/lfs/{repository}/{file}?signature=x"})

    def _status(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, served, *, body, more=None):
        fault = served.faults.popleft() if body and served.faults else Fault("none")
        match fault.kind:
            case "status":
                return self._status(int(fault.number))
            case "busy":
                return self._status(429, {"Retry-After": str(int(fault.number))})
            case "busy-date":
                date = time.time()
                return self._status(429, {"Retry-After": self.date_time_string(date + fault.number)})
            case "drop":
                self.close_connection = True
                return self.connection.close()
            case "loop":
                return self._status(302, {"Location": self.path})
        content = served.content
        size, start, status = len(content), 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range") in (None, served.tag)
        if asked and fault.kind != "no-range" and fresh:
            start, status = int(asked[1]), 206
            if start >= size:
                return self._status(416, {"Content-Range": f"bytes */{size}"})
        if fault.kind == "wrong-range" and status == 206:
            start = max(0, start - 1)
        self.send_response(status)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        if served.tag and not (more or {}).get("ETag"):
            self.send_header("ETag", served.tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        data = content[start:]
        if fault.kind == "corrupt" and data:
            middle = int(fault.number) % len(data)
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        if fault.kind == "extra":
            data += b"more"
        if fault.kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        match fault.kind:
            case "long-length":
                self.send_header("Content-Length", str(len(data) + 7))
            case "short-length":
                self.send_header("Content-Length", str(max(0, len(data) - 7)))
            case "no-length":
                self.send_header("Connection", "close")
                self.close_connection = True
            case _:
                self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return None
        return self._send(served, data, fault)

    def _send(self, served, data, fault):
        limit = int(fault.number) if fault.kind in ("truncate", "change") else len(data)
        sent = 0
        while sent < min(limit, len(data)):
            block = data[sent : min(sent + BLOCK, limit)]
            self.wfile.write(block)
            sent += len(block)
            if fault.kind == "throttle":
                time.sleep(fault.number)
        if fault.kind == "change":
            served.change(served.after_change or bytes(reversed(served.content)))
        if fault.kind in ("truncate", "change", "long-length") or sent < len(data):
            self.close_connection = True
            self.connection.close()


class _Direct:
    """Unbuffered, so that a truncation is where the script says."""

    closed = False

    def __init__(self, connection):
        self._connection = connection

    def write(self, data):
        self._connection.sendall(data)
        return len(data)

    def flush(self):
        pass

    def close(self):
        pass
