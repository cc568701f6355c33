"""What a check looks at: the machine, what its engine and the registry answered, and what is wanted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from imgbuild.doctor import docker

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.doctor.docker import Docker
    from imgbuild.doctor.finding import Finding
    from imgbuild.doctor.probe import Probe

SAMPLE_IMAGE = "debian:trixie-slim"
REGISTRY_SECONDS = 15


class Answer(Enum):
    YES = "yes"
    NO = "no"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, kw_only=True)
class Situation:
    probe: Probe
    docker: Docker
    registry: Answer
    platforms: frozenset[str]
    cache: Path
    needed_bytes: int | None
    git_url: str | None
    offline: bool


class Check(Protocol):
    @property
    def id(self) -> str: ...

    def __call__(self, s: Situation) -> list[Finding]: ...


def survey(
    probe: Probe,
    *,
    platforms: frozenset[str],
    cache: Path,
    needed_bytes: int | None = None,
    git_url: str | None = None,
    offline: bool = False,
) -> Situation:
    with ThreadPoolExecutor(2) as pool:
        registry = pool.submit(_registry, probe, offline=offline)
        engine = pool.submit(docker.ask, probe)
    return Situation(
        probe=probe,
        docker=engine.result(),
        registry=registry.result(),
        platforms=platforms,
        cache=cache,
        needed_bytes=needed_bytes,
        git_url=git_url,
        offline=offline,
    )


def _registry(probe: Probe, *, offline: bool) -> Answer:
    """Asked by buildx itself, so that its mirrors, credentials and proxies count; needs no engine."""
    if offline or not probe.which("docker"):
        return Answer.NOT_ASKED
    if probe.run("docker", "buildx", "version").returncode:
        return Answer.NOT_ASKED
    asked = probe.run("docker", "buildx", "imagetools", "inspect", SAMPLE_IMAGE, timeout=REGISTRY_SECONDS)
    return Answer.NO if asked.returncode else Answer.YES
