"""A registry in some lines: what a test needs to see inside, and to make misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDEX = "application/vnd.oci.image.index.v1+json"
_PLACE = re.compile(
    r"/v2/(?P<name>.+?)/(?P<kind>blobs/uploads|blobs|manifests|referrers|tags)/(?P<what>[^/]*)"
)


@dataclass
class Store:
    """What it holds, and what it was asked."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By repository and digest."""
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """By repository and tag or digest: kind and content."""
    asked: list[str] = field(default_factory=list)
    misbehave: Callable[[Any], bool] | None = None
    """Called with the handler before each answer; true when it has answered."""
    referrers: bool = False
    """Whether it has the referrers API."""
    ranges: bool = True
    page: int = 1000
    """Tags an answer, at most."""
    host: str = ""

    def tags(self, name: str) -> list[str]:
        return sorted(tag for repository, tag in self.manifests if repository == name and ":" not in tag)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str = "no, says the registry", **headers: str) -> None:
        self.answer(status, json.dumps({"errors": [{"code": "X", "message": message}]}).encode(), **headers)

    def do_any(self) -> None:  # noqa: C901  (a line for each request)
        store: Store = self.server.store
        store.asked.append(f"{self.command} {self.path}")
        if store.misbehave and store.misbehave(self):
            return None
        body = self.body()
        found = _PLACE.match(urlsplit(self.path).path)
        if found is None:
            return self.refuse(404, "page not found")
        query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        name, kind, what = found.groups()
        match self.command, kind:
            case "GET" | "HEAD", "blobs":
                self.blob(store.blobs.get((name, what)), ranges=store.ranges)
            case "POST", "blobs/uploads":
                self.upload(store, name, query)
            case "PUT", "blobs/uploads":
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                if digest != query["digest"]:
                    return self.refuse(400, "provided digest did not match uploaded content")
                store.blobs[name, digest] = body
                self.answer(201)
            case "DELETE", "blobs/uploads":
                self.answer(204)
            case "GET" | "HEAD", "manifests":
                self.manifest(store.manifests.get((name, what)))
            case "PUT", "manifests":
                self.put(store, name, what, body)
            case "GET", "tags":
                self.list_tags(store, name, query)
            case "GET", "referrers" if store.referrers:
                self.list_referrers(store, name, what)
            case _:
                self.refuse(404, "page not found")
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815

    def blob(self, held: bytes | None, *, ranges: bool) -> None:
        if held is None:
            return self.refuse(404, "blob unknown to registry")
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and ranges:
            start = int(asked[1])
            if start >= len(held):
                return self.refuse(416, "range not satisfiable")
            return self.answer(206, held[start:], Content_Range=f"bytes {start}-{len(held) - 1}/{len(held)}")
        return self.answer(200, held, Content_Type="application/octet-stream")

    def upload(self, store: Store, name: str, query: dict[str, str]) -> None:
        there = store.blobs.get((query.get("from", ""), query.get("mount", "")))
        if there is not None:
            store.blobs[name, query["mount"]] = there
            return self.answer(201)
        return self.answer(202, Location=f"/v2/{name}/blobs/uploads/1?state=x")

    def manifest(self, held: tuple[str, bytes] | None) -> None:
        if held is None:
            return self.refuse(404, "manifest unknown")
        digest = f"sha256:{hashlib.sha256(held[1]).hexdigest()}"
        return self.answer(200, held[1], Content_Type=held[0], Docker_Content_Digest=digest)

    def put(self, store: Store, name: str, what: str, body: bytes) -> None:
        document = json.loads(body)
        missing = [
            part["digest"]
            for part in (document.get("config"), *document.get("layers", ()))
            if part and (name, part["digest"]) not in store.blobs
        ]
        missing += [
            m["digest"] for m in document.get("manifests", ()) if (name, m["digest"]) not in store.manifests
        ]
        if missing:
            return self.refuse(400, f"blob unknown to registry: {missing[0]}")
        held = (self.headers["Content-Type"], body)
        store.manifests[name, what] = held
        store.manifests[name, f"sha256:{hashlib.sha256(body).hexdigest()}"] = held
        subject = document.get("subject")
        listed = {"OCI-Subject": subject["digest"]} if store.referrers and subject else {}
        return self.answer(201, **listed)

    def list_tags(self, store: Store, name: str, query: dict[str, str]) -> None:
        tags = [tag for tag in store.tags(name) if tag > query.get("last", "")]
        shown = tags[: store.page]
        more = {"Link": f'</v2/{name}/tags/list?last={shown[-1]}>; rel="next"'} if shown != tags else {}
        self.answer(200, json.dumps({"name": name, "tags": shown or None}).encode(), **more)

    def list_referrers(self, store: Store, name: str, what: str) -> None:
        found = []
        for (repository, digest), (kind, raw) in store.manifests.items():
            document = json.loads(raw)
            if repository == name and ":" in digest and document.get("subject", {}).get("digest") == what:
                own = {"mediaType": kind, "digest": digest, "size": len(raw)}
                found.append(own | {"artifactType": document.get("artifactType")})
        body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": found}
        self.answer(200, json.dumps(body).encode(), Content_Type=INDEX)


@contextlib.contextmanager
def fake_registry() -> Iterator[Store]:
    store = Store()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.store, server.daemon_threads = store, True  # type: ignore[attr-defined]
        store.host = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield store
        server.shutdown()
