"""The cpu image, built with a real engine from a copy of the project under a name of its own.

Nobody's own tags move, and what the tests leave behind in the engine is taken
away again: their tags, and what the one build without cache added to the cache.
Each test that needs the engine says so with the marker `engine`.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guarded as guarding
import pytest
from kit import IMAGE, REFERENCE, ROOT, TARGET, Built, imgbuild, look, run_python
from scratch import copy_project, no_new_cache

from imgbuild.project import Project, cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator


# A build without cache, or many servers started and stopped, or engines of their own: minutes each.
_SLOW = {
    *("test_composed.py", "test_derived.py", "test_faults.py", "test_plain_bake.py", "test_reproducible.py"),
    *(
        "test_podman_deployed.py",
        "test_secrets.py",
        "test_two_machines.py",
        "test_update.py",
        "test_workers.py",
        "test_workers_apart.py",
    ),
    *("test_carry.py", "test_look.py", "test_pull.py"),
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Here, because -m looks at markers in pytest_collection_modifyitems, before or after anybody's own."""
    item.add_marker(pytest.mark.engine)
    if item.path.name in _SLOW:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """The engine's client; without an engine every test here is skipped."""
    if shutil.which("docker") is None:
        pytest.skip("no docker command: imgbuild doctor --fix")
    with warnings.catch_warnings():
        # The SDK leaves its socket open when nobody answers; here, and not in some later test, it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        client, error = connect()
        gc.collect()
    if client is None:
        pytest.skip(f"no Docker engine can be reached ({error}): imgbuild doctor --fix")
    yield client
    client.close()


def connect() -> tuple[Any, str]:
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except docker.errors.DockerException as error:
        return None, str(error)
    return client, ""


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project whose images have another name."""
    folder = tmp_path_factory.mktemp("project")
    return copy_project(Project(root=ROOT, writable=False), folder / "project", image=IMAGE)


@pytest.fixture
def changed(copy: Project, tmp_path: Path) -> Project:
    """A copy of that copy, for one test to change."""
    return copy_project(copy, tmp_path / "changed")


@pytest.fixture(scope="session")
def cpu(client: Any, copy: Project) -> Iterator[Built]:
    """The image as anybody builds it, out of the cache where there is one."""
    done = imgbuild(copy, "build", "--target", TARGET)
    assert done.returncode == 0, done.stderr[-3000:]
    yield look(client, copy)
    for image in client.images.list(name=f"{IMAGE}*"):
        for tag in image.tags:
            client.images.remove(tag, force=True)


@pytest.fixture(scope="session")
def cache() -> Path:
    return cache_dir(os.environ)


@pytest.fixture(scope="session")
def guarded(
    client: Any,
    cpu: Built,
    copy: Project,
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[guarding.Guarded]:
    """The same image once more: without cache, with secrets for settings, attested; its tag is GUARDED."""
    folder = tmp_path_factory.mktemp("guarded")
    with no_new_cache(client, f"[{TARGET} "):
        made = guarding.build(copy, TARGET, folder, cache=cache, index_at=bridge_address(client))
        assert not made.report.failed, made.report.failed[0].lines
        yield made


def bridge_address(client: Any) -> str | None:
    """This machine's address on the engine's bridge, when a container can reach a port there."""
    settings = client.networks.get("bridge").attrs["IPAM"]["Config"] or []
    address = next((s["Gateway"] for s in settings if "." in s.get("Gateway", "")), None)
    if address is None:
        return None
    try:
        with socket.create_server((address, 0)) as server:
            ask = f"import socket; socket.create_connection(({address!r}, {server.getsockname()[1]}), 5)"
            run_python(client, REFERENCE, ask)
    except Exception:  # noqa: BLE001  (a remote engine, a firewall: then without)
        return None
    return str(address)
