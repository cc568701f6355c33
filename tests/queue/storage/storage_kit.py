"""Storages as tests want them: with small parts, short waits, and a prefix of their own."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import boto3
from botocore.config import Config
from storage_servers import ACCESS, BUCKET, SECRET, S3Server

from comfywork.storage import S3Settings
from comfywork.storage.s3 import S3Storage, Sizes, Waits

LIMIT = 48 << 20
PART = 5 << 20  # the least that S3 allows


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
