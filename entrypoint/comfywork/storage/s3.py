"""Outputs and inputs in a bucket of any S3-compatible storage, by boto3.

A name moves by a copy on the server and a delete: an object is at its old name, at both, or at the new one.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from comfywork.names import check_tenant
from comfywork.storage import media, names, s3errors
from comfywork.storage.base import ListedObject, Place, Stored, Swept, nobody_holds
from comfywork.storage.errors import MissingError, StorageError
from comfywork.storage.intake import CHUNK, Intake
from comfywork.storage.s3object import OpenedS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from comfywork.storage.base import OpenedObject
    from comfywork.storage.settings import S3Settings

_PARTS = 10_000
"""That one upload may have."""
_UPLOADS = 4
"""Parts under way at once; each holds its bytes in memory."""
_MOVES = 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes. What S3 allows by default; smaller in tests, so that they need no gigabytes."""

    part: int = 16 << 20
    """From this size on an object goes up in parts."""
    copy: int = 5 * 10**9
    """Above this size a copy is made in parts; S3 copies at most 5 GiB in one request."""
    copy_part: int = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds, and how often a request is made before it counts as failed."""

    connect: float = 5.0
    read: float = 60.0
    attempts: int = 4


class S3Storage:
    name = "s3"

    def __init__(
        self,
        settings: S3Settings,
        *,
        max_output: int,
        max_input: int,
        sizes: Sizes | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._settings, self._max_output, self._max_input = settings, max_output, max_input
        self._sizes, self._waits = sizes or Sizes(), waits or Waits()
        self._bucket, self._prefix = settings.bucket, settings.prefix
        with self._telling():
            self._client = self._connected(settings.endpoint)
            self._links = (
                self._connected(settings.link_endpoint)
                if settings.link_endpoint
                else (None if settings.endpoint else self._client)
            )

    def _connected(self, endpoint: str | None) -> Any:
        settings = self._settings
        # A session of our own: the default one is shared, and not safe between threads while it makes clients.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            verify=str(settings.ca_file) if settings.ca_file else None,
            config=Config(
                signature_version="s3v4",
                connect_timeout=self._waits.connect,
                read_timeout=self._waits.read,
                retries={"mode": "standard", "total_max_attempts": self._waits.attempts},
                max_pool_connections=_UPLOADS + _MOVES,
                tcp_keepalive=True,
                # boto3's new default, checksums as trailers, is refused by servers that do not know them. Bodies are
                # covered by the signature, which every server checks.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": settings.addressing, "payload_signing_enabled": True},
            ),
        )

    # --- outputs ---------------------------------------------------------------------------------

    def stage(self, place: Place, content: BinaryIO, size: int | None, media_type: str) -> Stored:  # noqa: ARG002
        intake = Intake(content, size, what=place.key, limit=self._max_output, setting="STORAGE_MAX_OUTPUT")
        self._upload(self._prefix + place.staged, place.name, intake)
        return intake.stored(place.key)

    def publish(self, places: Sequence[Place]) -> None:
        def move(place: Place) -> None:
            self._move(self._prefix + place.staged, place.key)

        with self._telling(), ThreadPoolExecutor(_MOVES, "publish") as pool:
            for _ in pool.map(move, places):
                pass

    def discard(self, tenant: str, job: str, token: int) -> None:
        here = self._prefix + names.staging_of(tenant, job, token)
        with self._telling():
            for upload in self._uploads(here):
                self._abort(upload["Key"], upload["UploadId"])
            for found in self._listed(here):
                self._client.delete_object(Bucket=self._bucket, Key=found["Key"])

    def sweep_staging(
        self, older_than: float, held: Callable[[str, str], bool] = nobody_holds, *, dry_run: bool = False
    ) -> Swept:
        swept = Swept()
        with self._telling():
            before = self.now() - older_than
            leases: dict[str, list[dict[str, Any]]] = {}
            here = f"{self._prefix}{names.STAGING}/"
            for found in [*self._listed(here), *self._uploads(here)]:
                leases.setdefault("/".join(found["Key"][len(here) :].split("/")[:3]), []).append(found)
            for lease, objects in leases.items():
                tenant, job = (*lease.split("/"), "")[:2]
                last = max((found.get("LastModified") or found["Initiated"]).timestamp() for found in objects)
                if last > before or held(tenant, job):
                    continue
                swept += Swept(objects=len(objects), size=sum(found.get("Size", 0) for found in objects))
                for found in () if dry_run else objects:
                    if "UploadId" in found:
                        self._abort(found["Key"], found["UploadId"])
                    else:
                        self._client.delete_object(Bucket=self._bucket, Key=found["Key"])
        return swept

    # --- inputs ----------------------------------------------------------------------------------

    def put_input(
        self,
        tenant: str,
        name: str,
        content: BinaryIO,
        size: int | None,
        media_type: str,  # noqa: ARG002
    ) -> Stored:
        check_tenant(tenant)
        plain = names.input_name(name)
        intake = Intake(content, size, what=plain, limit=self._max_input, setting="STORAGE_MAX_INPUT")
        staged = self._prefix + names.staging_of(tenant, names.INPUTS, secrets.randbits(62)) + "input"
        self._upload(staged, plain, intake)
        stored = intake.stored(names.input_key(tenant, intake.sha256, plain))
        with self._telling():
            self._move(staged, stored.key)
        return stored

    # --- what is published -----------------------------------------------------------------------

    def open(self, key: str) -> OpenedObject:
        names.check_key(key)
        opened = OpenedS3(
            self._client, self._bucket, self._prefix + key, key, self._told, self._waits.attempts
        )
        opened.begin()
        return opened

    def delete(self, key: str) -> None:
        names.check_key(key)
        with self._telling():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def keys(self, prefix: str) -> Iterator[ListedObject]:
        with self._telling():
            for found in self._listed(self._prefix + prefix):
                key = found["Key"][len(self._prefix) :]
                if names.is_key(key):
                    yield ListedObject(
                        key=key, size=found["Size"], modified=found["LastModified"].timestamp()
                    )

    def link(self, key: str, seconds: int) -> str | None:
        names.check_key(key)
        if self._links is None:
            return None
        # Nothing that a browser would run is shown in place, whatever its name claims.
        shown = media.disposition(media.UNKNOWN, key.rpartition("/")[2])
        with self._telling():
            return str(
                self._links.generate_presigned_url(
                    "get_object",
                    Params={
                        "Bucket": self._bucket,
                        "Key": self._prefix + key,
                        "ResponseContentDisposition": shown,
                    },
                    ExpiresIn=max(1, min(seconds, 7 * 86400)),
                )
            )

    def now(self) -> float:
        with self._telling():
            answer = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=f"{self._prefix}{names.STAGING}/", MaxKeys=1
            )
            there = s3errors.date_of(answer)
        if there is None:
            raise StorageError(
                f"{self._where()} sends no Date header, so its clock is unknown",
                hint="a proxy on the way takes it away",
                retryable=False,
            )
        return there.timestamp()

    def check(self) -> None:
        probe = f"{self._prefix}{names.STAGING}/check-{secrets.token_hex(8)}"
        with self._telling():
            # A listing, not HEAD: only an answer with a body says why.
            self.now()
            try:
                self._client.put_object(Bucket=self._bucket, Key=probe, Body=b"0" * 64, **self._extra())
                self._client.copy_object(
                    Bucket=self._bucket,
                    Key=f"{probe}-copied",
                    CopySource={"Bucket": self._bucket, "Key": probe},
                    **self._extra(),
                )
                self._client.get_object(Bucket=self._bucket, Key=f"{probe}-copied")["Body"].read()
            finally:
                for key in (probe, f"{probe}-copied"):
                    self._client.delete_object(Bucket=self._bucket, Key=key)

    # --- how -------------------------------------------------------------------------------------

    def _extra(self, **more: str) -> dict[str, Any]:
        """What every object is written with."""
        settings = self._settings
        encryption = {"ServerSideEncryption": settings.encryption} if settings.encryption else {}
        key = {"SSEKMSKeyId": settings.kms_key} if settings.kms_key else {}
        return {**more, **encryption, **key}

    def _upload(self, key: str, name: str, intake: Intake) -> None:
        # The first bytes say what it is, and stand in the request that comes before the rest.
        peeked = _Peeked(intake)
        extra = self._extra(ContentType=media.decide(peeked.head, name))
        config = TransferConfig(
            multipart_threshold=self._sizes.part,
            multipart_chunksize=max(self._sizes.part, -(-self._limit() // _PARTS)),
            max_concurrency=_UPLOADS,
            io_chunksize=1 << 20,
        )
        try:
            with self._telling():
                # boto3's own transfer: parts in parallel, each tried again, and the upload aborted when one fails.
                self._client.upload_fileobj(peeked, self._bucket, key, ExtraArgs=extra, Config=config)
        except BaseException as error:
            if intake.size >= self._sizes.part:
                with suppress(StorageError), self._telling():
                    # What boto3's own abort could not reach, because the network was away for a moment.
                    for upload in self._uploads(key):
                        self._abort(upload["Key"], upload["UploadId"])
            if intake.failure is not None and error is not intake.failure:
                raise intake.failure from None
            raise

    def _limit(self) -> int:
        return max(self._max_output, self._max_input)

    def _move(self, staged: str, key: str) -> None:
        final = self._prefix + key
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=staged)
            self._copy(staged, final, found)
        except ClientError as error:
            if not s3errors.is_missing(error):
                raise
            if not self._is_there(final):
                raise MissingError(
                    key, hint="it is not staged either: this job's result is lost, and has to be made again"
                ) from None
            return
        self._client.delete_object(Bucket=self._bucket, Key=staged)

    def _copy(self, source: str, target: str, found: Any) -> None:
        where = {"Bucket": self._bucket, "Key": source}
        if found["ContentLength"] <= self._sizes.copy:
            self._client.copy_object(Bucket=self._bucket, Key=target, CopySource=where, **self._extra())
            return
        # Made of parts it would lose its type, and on a failure boto3 aborts it.
        config = TransferConfig(
            multipart_threshold=self._sizes.copy,
            multipart_chunksize=max(self._sizes.copy_part, -(-found["ContentLength"] // _PARTS)),
            max_concurrency=_UPLOADS,
        )
        extra = self._extra(ContentType=found.get("ContentType", media.UNKNOWN), MetadataDirective="REPLACE")
        self._client.copy(where, self._bucket, target, ExtraArgs=extra, Config=config)

    def _is_there(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if s3errors.is_missing(error):
                return False
            raise
        return True

    def _listed(self, prefix: str) -> Iterator[dict[str, Any]]:
        for page in self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix
        ):
            # SeaweedFS takes `a//` for `a/`, and answers more than was asked for.
            yield from (found for found in page.get("Contents", ()) if found["Key"].startswith(prefix))

    def _uploads(self, prefix: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        # Some servers take a prefix for one key alone: what they answer too much is left alone here.
        return [
            upload for page in pages for upload in page.get("Uploads", ()) if upload["Key"].startswith(prefix)
        ]

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if s3errors.code(error) != "NoSuchUpload":
                raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except S3UploadFailedError as error:
            raise self._told(
                error.__context__ if isinstance(error.__context__, Exception) else error
            ) from error
        except (BotoCoreError, HTTPClientError, ClientError, Boto3Error) as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> StorageError:
        return s3errors.told(error, endpoint=self._endpoint(), bucket=self._bucket, now=datetime.now(UTC))

    def _endpoint(self) -> str:
        return self._settings.endpoint or f"AWS S3, region {self._settings.region}"

    def _where(self) -> str:
        return f"bucket {self._bucket} at {self._endpoint()}"


class _Peeked:
    """An intake whose first bytes were looked at. It has no seek(): boto3 then reads it once, and keeps what it sends.

    Every read is filled up to the end of the content: boto3 takes a short one for the end.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._left = self.head = self._filled(media.HEAD)

    def read(self, size: int = -1, /) -> bytes:
        if 0 <= size <= len(self._left):
            taken, self._left = self._left[:size], self._left[size:]
            return taken
        begin, self._left = self._left, b""
        return begin + self._filled(size - len(begin) if size >= 0 else -1)

    def _filled(self, size: int) -> bytes:
        pieces = []
        while size and (piece := self._intake.read(min(size, CHUNK) if size > 0 else CHUNK)):
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
        return b"".join(pieces)
