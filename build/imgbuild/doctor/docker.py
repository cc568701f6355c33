"""What the docker client on PATH says about itself and its engine, asked once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgbuild.doctor.probe import TIMED_OUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.doctor.probe import Probe

SYSTEM_SOCKETS = ("", "unix:///var/run/docker.sock", "unix:///run/docker.sock")


@dataclass(frozen=True, kw_only=True)
class Client:
    path: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Docker:
    """`buildx` and `compose` are what the plugin prints as its version, None where it is absent."""

    clients: tuple[Client, ...] = ()
    endpoint: str = ""
    server: str | None = None
    error: str = ""
    buildx: str | None = None
    compose: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_podman(self) -> bool:
        return bool(self.clients) and "podman" in self.clients[0].version.casefold()

    @property
    def is_ours(self) -> bool:
        """Whether it is this machine's system-wide engine, the one `--fix` may set up."""
        return self.endpoint in SYSTEM_SOCKETS

    @property
    def is_local(self) -> bool:
        return self.endpoint == "" or self.endpoint.startswith("unix://")

    @property
    def containerd_store(self) -> bool:
        status = self.info.get("DriverStatus") or ()
        return any("io.containerd.snapshotter.v1" in row for row in status)

    @property
    def running(self) -> int:
        return int(self.info.get("ContainersRunning") or 0)

    @property
    def images(self) -> int:
        return int(self.info.get("Images") or 0)

    @property
    def data_root(self) -> str:
        return str(self.info.get("DockerRootDir") or "/var/lib/docker")


def ask(probe: Probe) -> Docker:
    clients = tuple(
        Client(path=path, version=_line(probe.run(path, "--version").stdout))
        for path in probe.which("docker")
    )
    if not clients:
        return Docker()
    asked = probe.run("docker", "version", "--format", "{{json .}}", timeout=20)
    server = (_mapping(asked.stdout).get("Server") or {}).get("Version")
    context = probe.run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    known = probe.run("docker", "info", "--format", "{{json .}}", timeout=20) if server else None
    buildx = probe.run("docker", "buildx", "version")
    compose = probe.run("docker", "compose", "version")
    return Docker(
        clients=clients,
        endpoint=_line(context.stdout) if context.returncode == 0 else probe.env.get("DOCKER_HOST", ""),
        server=server,
        error="no answer within 20 s" if asked.returncode == TIMED_OUT else _line(asked.stderr),
        buildx=_line(buildx.stdout) if buildx.returncode == 0 else None,
        compose=_line(compose.stdout) if compose.returncode == 0 else None,
        info=_mapping(known.stdout) if known else {},
    )


def _line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
