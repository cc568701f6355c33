"""Inputs and outputs for those in front of the queue: the storage, whose errors become the queue's own."""

from __future__ import annotations

import mimetypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from comfywork.errors import ConfigError, QueueError, UnknownJobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis

    from comfywork.storage.base import OpenedObject, Storage, Stored
    from comfywork.views import Output

PIECE = 1 << 20


class FileTooLargeError(ConfigError):
    """More bytes than the storage takes."""


class FileMissingError(UnknownJobError):
    """The queue knows of it, and the storage has it no more (or not yet)."""


class StorageDownError(QueueError):
    """The storage does not do it now."""


class Files:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @classmethod
    def of_environment(cls, connection: redis.Redis, environ: Mapping[str, str] | None = None) -> Files:
        from comfywork.storage import open_storage  # noqa: PLC0415 - boto3 is slow to import
        from comfywork.storage.settings import StorageSettings  # noqa: PLC0415

        with _translated():
            return cls(open_storage(StorageSettings.from_environment(environ), connection))

    @property
    def name(self) -> str:
        """volume, s3 or queue."""
        return self._storage.name

    def put(self, tenant: str, name: str, content: BinaryIO, size: int | None = None) -> Stored:
        """An input; its key is what a submission names. FileTooLargeError, ConfigError, StorageDownError."""
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        with _translated():
            return self._storage.put_input(tenant, name, content, size, media_type)

    def open(self, output: Output) -> OpenedObject:
        """FileMissingError, StorageDownError."""
        with _translated():
            return self._storage.open(output.key)

    def pieces(self, output: Output) -> Iterator[bytes]:
        with _translated(), self._storage.open(output.key) as opened:
            while piece := opened.read(PIECE):
                yield piece

    def delete(self, key: str) -> None:
        with _translated():
            self._storage.delete(key)

    def check(self) -> None:
        """StorageDownError with the cause and the next step."""
        with _translated():
            self._storage.check()


@contextmanager
def _translated() -> Iterator[None]:
    from comfywork.storage import errors  # noqa: PLC0415

    try:
        yield
    except errors.MissingError as error:
        raise FileMissingError(error.message, hint=error.next_step) from None
    except errors.TooLargeError as error:
        raise FileTooLargeError(error.message, hint=error.next_step) from None
    except errors.StorageError as error:
        raise StorageDownError(error.message, hint=error.next_step) from None
    except errors.KeyNameError as error:
        raise ConfigError(str(error)) from None
