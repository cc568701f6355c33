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
    stated: tuple[int, str] | None = None
    """Size and SHA-256 that the hub states, where they are not the content's."""

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
        served = self.server.repositories.get(repository, {}).get(file)
        if refusal := self._refusal(repository, revision, served):
            status, code = refusal
            self._status(status, {"X-Error-Code": code, "X-Error-Message": "no"})
        elif not body and served.head_faults:
            fault = served.head_faults.popleft()
            self._status(int(fault.number), {"Retry-After": "0"} if fault.number == 429 else {})
        elif not served.lfs:
            tag = hashlib.sha1(served.content).hexdigest()
            self._file(served, body=body, more={"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})
        else:
            size, sha256 = served.stated or (len(served.content), served.sha256)
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(size),
            }
            cdn = self.server.cdn
            cdn.files[f"/lfs/{repository}/{file}"] = served
            self._status(302, headers | {"Location": f"{cdn.url}/lfs/{repository}/{file}?signature=x"})

    def _refusal(self, repository, revision, served):
        """What the real hub answers, of which huggingface_hub makes its errors."""
        if repository not in self.server.repositories:
            return 401, "RepoNotFound"
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound"
        if served is None:
            return 404, "EntryNotFound"
        token = self.headers.get("Authorization", "")
        if served.gated and token != f"Bearer {served.wants_token}":
            return (403 if token else 401), "GatedRepo"
        return None

    def _status(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, served, *, body, more=None):
        fault = served.faults.popleft() if body and served.faults else Fault("none")
        if self._instead(fault):
            return
        start, status = self._start(served, fault)
        if status == 416:
            self._status(416, {"Content-Range": f"bytes */{len(served.content)}"})
            return
        data = _spoilt(served.content[start:], fault)
        self.send_response(status)
        for name, value in self._headers(served, fault, start, status, len(data), more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(served, data, fault)

    def _instead(self, fault):
        """Faults that answer something else."""
        match fault.kind:
            case "status":
                self._status(int(fault.number))
            case "busy":
                self._status(429, {"Retry-After": str(int(fault.number))})
            case "busy-date":
                self._status(429, {"Retry-After": self.date_time_string(time.time() + fault.number)})
            case "loop":
                self._status(302, {"Location": self.path})
            case "drop":
                self.close_connection = True
                self.connection.close()
            case _:
                return False
        return True

    def _start(self, served, fault):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range") in (None, served.tag)
        if not asked or not fresh or fault.kind == "no-range":
            return 0, 200
        start = int(asked[1])
        if start >= len(served.content):
            return start, 416
        return max(0, start - (fault.kind == "wrong-range")), 206

    def _headers(self, served, fault, start, status, length, more):
        headers = dict(more)
        size = len(served.content)
        if served.tag:
            headers.setdefault("ETag", served.tag)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if fault.kind == "gzip":
            headers["Content-Encoding"] = "gzip"
        if fault.kind in ("no-length", "endless"):
            headers["Connection"] = "close"
            self.close_connection = True
        else:
            lie = {"long-length": 7, "short-length": -7}.get(fault.kind, 0)
            headers["Content-Length"] = str(max(0, length + lie))
        return headers

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


def _spoilt(data, fault):
    if fault.kind == "corrupt" and data:
        place = int(fault.number) % len(data)
        return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    return data + b"more" * 5000 if fault.kind in ("extra", "endless") else data


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
