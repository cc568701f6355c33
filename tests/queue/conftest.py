from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from queuefrontkit import World


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
