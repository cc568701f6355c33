"""A running container of the image under test, started the way the documentation calls standard.

pytest tests/image --image REF            (or IMGBUILD_IMAGE=REF)

Without an image these tests are skipped, so that they may be part of any other pytest run.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from comfyclient import ComfyClient
from runningimage import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

UID = 4321  # no passwd entry, in any image
PORT = 8188


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("imgbuild image tests")
    group.addoption("--image", default=None, metavar="REF", help="the image to test (else IMGBUILD_IMAGE)")
    group.addoption("--platform", default=None, help="of a multi-platform image (else IMGBUILD_PLATFORM)")
    group.addoption(
        "--ready-timeout",
        default=None,
        type=float,
        metavar="SECONDS",
        help="default 180; emulation needs more",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Also known where the project's pyproject.toml is not (tests run out of the wheel).
    config.addinivalue_line("markers", "engine: needs a running container engine")


def _option(config: pytest.Config, name: str) -> str | None:
    # Called from the repository's root, pytest reads this file too late for its options to exist.
    value = config.getoption(f"--{name}", default=None)
    return str(value) if value else os.environ.get(f"IMGBUILD_{name.upper().replace('-', '_')}") or None


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config) -> str:
    reference = _option(pytestconfig, "image")
    if not reference:
        pytest.skip("no image given: --image REF or IMGBUILD_IMAGE")
    return reference


@pytest.fixture(scope="session")
def engine(image: str) -> Iterator[Any]:
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.fail(f"no container engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def running(engine: Any, image: str, pytestconfig: pytest.Config) -> Iterator[Running]:
    timeout = float(_option(pytestconfig, "ready-timeout") or 180)
    name = f"imgbuild-test-{uuid.uuid4().hex[:12]}"
    volumes = [engine.volumes.create(f"{name}-{what}") for what in ("data", "cache")]
    container = engine.containers.create(
        image,
        ["serve", "--cpu"],
        name=name,
        platform=_option(pytestconfig, "platform"),
        user=f"{UID}:{UID}",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        # exec: Triton loads what it compiled from a temporary folder.
        tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
        volumes={f"{name}-data": {"bind": "/data"}, f"{name}-cache": {"bind": "/cache"}},
        ports={f"{PORT}/tcp": ("127.0.0.1", None)},
    )
    try:
        yield _started(container, timeout)
    finally:
        container.remove(force=True, v=True)
        for volume in volumes:
            volume.remove(force=True)


def _started(container: Any, timeout: float) -> Running:
    begin = time.monotonic()
    container.start()
    client = ComfyClient(f"http://127.0.0.1:{_published(container)}")
    alive = _until(container, client.system_stats, begin, timeout)
    ready = _until(
        container, lambda: client.get_json("/prompt")["exec_info"]["queue_remaining"], begin, timeout
    )
    return Running(container=container, client=client, seconds_to_alive=alive, seconds_to_ready=ready)


def _published(container: Any) -> int:
    for _ in range(50):
        container.reload()
        if container.status in ("exited", "dead"):
            break
        bindings = container.ports.get(f"{PORT}/tcp")
        if bindings:
            return int(bindings[0]["HostPort"])
        time.sleep(0.1)
    pytest.fail(f"the container does not run ({container.status}):\n{container.logs().decode()}")


def _until(container: Any, ask: Any, begin: float, timeout: float) -> float:
    """Seconds since `begin` when `ask` first answers."""
    while time.monotonic() - begin < timeout:
        try:
            ask()
        except (OSError, ValueError, KeyError):
            container.reload()
            if container.status in ("exited", "dead"):
                code = container.attrs["State"]["ExitCode"]
                pytest.fail(f"the container ended with {code}:\n{container.logs().decode()}")
            time.sleep(0.1)
        else:
            return time.monotonic() - begin
    pytest.fail(f"no answer in {timeout:g} s:\n{container.logs().decode()}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures that acceptance notes quote."""
    figures = [
        (name, value)
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call"
        for name, value in report.user_properties
        if name.startswith(("seconds_", "exit_code"))
    ]
    for name, value in figures:
        terminalreporter.write_line(f"{name.replace('_', ' ')}: {value}")
