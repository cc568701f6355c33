"""An object of S3, being read: where the connection breaks it goes on from there, of the same version."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from comfywork.storage import media, s3errors
from comfywork.storage.errors import MissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_CHANGED = 412
_FAILURES = (BotoCoreError, HTTPClientError, HTTPError, OSError)


class OpenedS3:
    def __init__(
        self,
        client: Any,
        bucket: str,
        place: str,
        key: str,
        told: Callable[[Exception], StorageError],
        attempts: int,
    ) -> None:
        self._client, self._bucket, self._place, self._key = client, bucket, place, key
        self._told, self._attempts = told, attempts
        self._body: Any = None
        self._at = self.size = 0
        self._etag = ""
        self._head = b""
        """Read already, and not given out yet."""
        self.media_type = media.UNKNOWN

    def begin(self) -> None:
        """The first request. Raises MissingError."""
        answer = self._asked()
        self.size = int(answer["ContentLength"])
        self._etag = str(answer.get("ETag", ""))
        self._body = answer["Body"]
        # Not what the answer says: some servers (SeaweedFS) make a type of the key's extension.
        self._head = self.read(media.HEAD)
        self.media_type = media.decide(self._head, self._key)

    def _asked(self) -> Any:
        more = {"Range": f"bytes={self._at}-", "IfMatch": self._etag} if self._at else {}
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._place, **more)
        except ClientError as error:
            if s3errors.is_missing(error):
                raise MissingError(self._key) from None
            if s3errors.status(error) == _CHANGED:
                raise StorageError(
                    f"{self._key} was replaced while it was read", hint="read it again", retryable=True
                ) from None
            raise self._told(error) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise self._told(error) from error

    def read(self, size: int = -1, /) -> bytes:
        end = len(self._head) if size < 0 else size
        begin, self._head = self._head[:end], self._head[end:]
        rest = self.size - self._at
        wanted = rest if size < 0 else min(size - len(begin), rest)
        pieces = [begin] if begin or not wanted else []
        failures = 0
        while wanted:
            try:
                if self._body is None:
                    self._body = self._asked()["Body"]
                piece = self._body.read(min(wanted, 8 << 20))
                if not piece:
                    raise OSError("the connection ended early")
            except _FAILURES as error:
                self.close()
                failures += 1
                if failures >= self._attempts:
                    raise self._told(error) from error
                time.sleep(0.1 * 2**failures)
                continue
            failures = 0
            pieces.append(piece)
            wanted -= len(piece)
            self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()
