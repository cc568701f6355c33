from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from queuefrontkit import World
from queuekit import ENTRYPOINT, Comfy, Server, Worker, settings_of
from zygote import Zygote

from comfywork.broker import Broker
from comfywork.lease import Ledger
from comfywork.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _needed() -> None:
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed: apt-get install redis-server")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    found = Zygote(ENTRYPOINT)
    yield found
    found.close()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("redis"), "--appendfsync", "no").start()
    yield found
    found.kill()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """Empty; not to be stopped."""
    client = shared_server.client
    client.flushall()
    client.close()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One that a test may kill."""
    found = Server(tmp_path / "redis").start()
    yield found
    found.kill()


@pytest.fixture
def settings(server: Server) -> Settings:
    return settings_of(server)


@pytest.fixture
def connection(server: Server) -> Iterator[redis.Redis]:
    with server.client as client:
        yield client


@pytest.fixture
def broker(connection: redis.Redis, settings: Settings) -> Broker:
    return Broker(connection, settings)


@pytest.fixture
def ledger(connection: redis.Redis, settings: Settings) -> Ledger:
    return Ledger(connection, settings)


@pytest.fixture
def comfies(tmp_path: Path, zygote: Zygote) -> Iterator[Callable[[], Comfy]]:
    made: list[Comfy] = []

    def make() -> Comfy:
        made.append(Comfy(tmp_path / f"comfy{len(made)}", zygote))
        return made[-1].start()

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def comfy(comfies: Callable[[], Comfy]) -> Comfy:
    return comfies()


@pytest.fixture
def workers(tmp_path: Path, zygote: Zygote) -> Iterator[Callable[..., Worker]]:
    """Agents; `workers(server, comfy, "w1", NAME=VALUE)` is not started yet."""
    made: list[Worker] = []

    def make(server: Server, comfy: Comfy, name: str = "w1", **more: str) -> Worker:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ENTRYPOINT),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "WORKER_ID": name,
            "WORKER_HEARTBEAT_TIMEOUT": "4",
            "WORKER_POLL_INTERVAL": "0.2",
            "COMFYWORK_SERVER": comfy.address,
            "COMFYWORK_STATE": str(tmp_path / name / "agent.json"),
            "COMFYWORK_OUTPUT": str(comfy.folder / "output"),
            "OUTPUTS_PATH": str(tmp_path / "outputs"),
            "INPUTS_PATH": str(tmp_path / "inputs"),
            **({"REDIS_PASSWORD": server.password} if server.password else {}),
            **more,
        }
        for folder in ("outputs", "inputs"):
            (tmp_path / folder).mkdir(exist_ok=True)
        made.append(Worker(name, environ, tmp_path / f"{name}.log", zygote))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="session")
def _front_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two tenants' fronts and two workers."""
    world = World(tmp_path_factory.mktemp("fronts"))
    try:
        world.start()
        for name in ("worker-1", "worker-2"):
            world.worker(name)
            (world.comfys[name].folder / "models" / "checkpoints" / "of-the-workers.safetensors").write_bytes(
                b"x"
            )
        for name in ("worker-1", "worker-2"):
            world.agent(name)
        for tenant in ("user001", "user002"):
            world.front(tenant).start(wait=False)
        for tenant in ("user001", "user002"):
            world.comfys[tenant].ready()
        yield world
    finally:
        world.close()


@pytest.fixture
def front_world(_front_world: World) -> Iterator[World]:
    """With nothing waiting or running, before and after."""
    yield _front_world
    for job in _front_world.broker.jobs(states=["pending", "processing"]):
        with contextlib.suppress(Exception):
            _front_world.broker.cancel(job.id)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One of a process: Playwright's loop may run once only."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, for a real browser")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("apt-get install chromium, for a real browser")
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


# A front and workers in containers, or half a minute of a machine's guesses.
_SLOW = {"test_front_browser.py", "test_front_ends.py", "test_front_prompts.py", "test_api_schema.py"}


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.name in _SLOW:
        item.add_marker(pytest.mark.slow)
