"""A build on a machine whose every setting is a secret, with the most talkative attestation there is."""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild.build import Builder, Options, Report
from imgbuild.engines.docker import Docker
from imgbuild.matrix import load_matrix
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.project import Project

SUFFIX = "-guarded"
"""Of the image's name."""
_CA = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")


class Attesting(Docker):
    """Bakes with provenance mode=max, which holds every build argument and every step.

    The image gets a tag of its own here and not by another name in the matrix: its profile names the images for other
    hardware, so under another name it would be another layer.
    """

    def bake(self, bake_file: Path, targets: tuple[str, ...], **options: Any) -> int:
        bake = json.loads(bake_file.read_text())
        for name in targets:
            bake["target"][name]["attest"] = ["type=provenance,mode=max"]
            bake["target"][name]["tags"] = [
                t.replace(":", f"{SUFFIX}:") for t in bake["target"][name]["tags"]
            ]
        bake_file.write_text(json.dumps(bake))
        return super().bake(bake_file, targets, **options)


class EmptyIndex(ThreadingHTTPServer):
    """A package index that has nothing, and tells it only to those with the password."""

    daemon_threads = True

    def __init__(self, host: str, user: str, password: str) -> None:
        self.wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.admitted = 0
        super().__init__((host, 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: EmptyIndex

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == self.server.wanted
        self.server.admitted += known
        self.send_response(404 if known else 401)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  (http.server asks for that name)

    def log_message(self, *_args: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Guarded:
    report: Report
    log: str
    admitted: int
    """How often a build step used the index's password."""
    words: Mapping[str, str]
    """What must be found nowhere: what it is → the text."""


@dataclass(kw_only=True)
class Machine:
    """The settings of such a machine, as environment variables."""

    folder: Path
    words: dict[str, str] = field(default_factory=dict)

    def secret(self, what: str) -> str:
        self.words[what] = f"hunter2-{secrets.token_hex(6)}"
        return self.words[what]

    def environment(self, index: EmptyIndex | None) -> dict[str, str]:
        # NO_PROXY makes the build work although nobody listens at the proxy's address.
        env = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        # No HTTP_PROXY: to uv, `*` means every name and no address, and the index below has only an address.
        env["HTTPS_PROXY"] = f"http://builder:{self.secret('proxy password')}@127.0.0.1:9"
        bundle = next(
            (p for name in _CA if (p := os.environ.get(name))), "/etc/ssl/certs/ca-certificates.crt"
        )
        if Path(bundle).is_file():
            copy = self.folder / self.secret("certificate bundle's path")
            copy.write_text(f"# {self.secret('certificate bundle')}\n{Path(bundle).read_text()}")
            env.update(dict.fromkeys(_CA, str(copy)))
        if index:
            host, port = index.server_address[:2]
            userinfo = f"reader:{self.words['index password']}"
            env["PIP_EXTRA_INDEX_URL"] = f"http://{userinfo}@{host!s}:{port}/simple"
        if (links := os.environ.get("PIP_FIND_LINKS", "")) and Path(links).is_dir():
            folder = self.folder / self.secret("wheel folder's path")
            folder.symlink_to(links)
            env["PIP_FIND_LINKS"] = str(folder)
        return env


def build(project: Project, target: str, folder: Path, *, cache: Path, index_at: str | None) -> Guarded:
    """Build without cache: a changed secret alone makes BuildKit run nothing again."""
    machine = Machine(folder=folder)
    index = EmptyIndex(index_at, "reader", machine.secret("index password")) if index_at else None
    if index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
    env = machine.environment(index)
    matrix = load_matrix(project.images)
    engine = Attesting(env)
    builder = Builder(
        project=project,
        matrix=matrix,
        settings=read_settings(env),
        env=env,
        cache=cache,
        engine=engine,
        say=lambda _text: None,
        notice=lambda _title, _lines: None,
    )
    try:
        report = builder.build([matrix.targets[target]], Options(no_cache=True, progress="plain"))
    finally:
        engine.client.close()
        if index:
            index.shutdown()
            index.server_close()
    log = report.log.read_text(errors="replace") if report.log else ""
    return Guarded(report=report, log=log, admitted=index.admitted if index else 0, words=machine.words)
