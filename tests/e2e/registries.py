"""Debian's docker-registry as people run it: on loopback, with TLS and a password; and a client's own environment."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "me", "secret"
_HTPASSWD = f"{USER}:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"  # PASSWORD, by bcrypt


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """For localhost and 127.0.0.1, signed by itself."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    def bundle(self) -> Path:
        """This machine's certificates and this one: what SSL_CERT_FILE is to name."""
        path = self.folder / "bundle.pem"
        machine = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        own = Path(machine).read_bytes() if Path(machine).is_file() else b""
        path.write_bytes(own + self.file.read_bytes())
        return path


def make_certificate(folder: Path) -> Certificate:
    folder.mkdir(parents=True, exist_ok=True)
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout tls.key -out tls.crt"
    subprocess.run(words.split(), cwd=folder, check=True, capture_output=True)
    return Certificate(folder=folder)


@dataclass(frozen=True, kw_only=True)
class Registry:
    """One that runs."""

    host: str
    folder: Path
    """Its storage."""
    certificate: Certificate | None

    @property
    def blobs(self) -> Path:
        return self.folder / "docker/registry/v2/blobs/sha256"

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        plain = digest.removeprefix("sha256:")
        return self.blobs / plain[:2] / plain / "data"

    def tags(self, path: str) -> dict[str, str]:
        """Every tag of a repository with its digest, read from its disk."""
        folder = self.folder / "docker/registry/v2/repositories" / path / "_manifests/tags"
        if not folder.is_dir():
            return {}
        return {p.name: (p / "current/link").read_text() for p in sorted(folder.iterdir())}


@contextlib.contextmanager
def real_registry(
    folder: Path, *, certificate: Certificate | None = None, password: bool = False
) -> Iterator[Registry]:
    """Run one until the block ends; skips the test where docker-registry is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"}
        | (
            {"tls": {"certificate": str(certificate.file), "key": str(certificate.key)}}
            if certificate
            else {}
        ),
    }
    if password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "a registry", "path": str(folder / "htpasswd")}}
    (folder / "registry.yml").write_text(json.dumps(config))
    with (
        (folder / "registry.log").open("wb") as log,
        subprocess.Popen([program, "serve", str(folder / "registry.yml")], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(port, process)
            yield Registry(host=f"127.0.0.1:{port}", folder=folder / "storage", certificate=certificate)
        finally:
            process.terminate()


def client_env(
    home: Path, *hosts: str, certificate: Certificate | None = None, password: str = PASSWORD
) -> dict[str, str]:
    """The environment of somebody who is logged in at these registries and trusts that certificate."""
    config = home / "docker"
    config.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (config / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth} for host in hosts}}))
    trusted = {"SSL_CERT_FILE": str(certificate.bundle())} if certificate else {}
    return {**os.environ, "DOCKER_CONFIG": str(config), **trusted}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert process.poll() is None, "the registry ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail("the registry does not answer")
