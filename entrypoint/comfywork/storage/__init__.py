"""Where outputs and inputs lie: folders, S3-compatible storage, or, for small ones, the queue's Redis. docs/storage.md"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from comfywork.storage.base import ListedObject, OpenedObject, Place, Storage, Stored, Swept
from comfywork.storage.errors import KeyNameError, MissingError, StorageError, TooLargeError
from comfywork.storage.media import disposition
from comfywork.storage.names import output_name
from comfywork.storage.retention import Report, sweep
from comfywork.storage.settings import S3Settings, StorageSettings

if TYPE_CHECKING:
    import redis

__all__ = [
    "KeyNameError",
    "ListedObject",
    "MissingError",
    "OpenedObject",
    "Place",
    "Report",
    "S3Settings",
    "Storage",
    "StorageError",
    "StorageSettings",
    "Stored",
    "Swept",
    "TooLargeError",
    "disposition",
    "open_storage",
    "output_name",
    "sweep",
]

_WEEK = 7 * 86400.0


def open_storage(
    settings: StorageSettings | Mapping[str, str], connection: redis.Redis | None = None
) -> Storage:
    """The storage of these settings, or of an environment (ConfigError with every mistake); nothing is asked of it yet.

    `connection` is to the queue's Redis, with answers as bytes; only STORAGE=queue needs it.
    """
    if isinstance(settings, Mapping):
        settings = StorageSettings.from_environment(settings)
    # Each needs a library that the others do not.
    match settings.kind:
        case "volume":
            from comfywork.storage.volume import VolumeStorage  # noqa: PLC0415

            return VolumeStorage(
                settings.outputs,
                settings.inputs,
                max_output=settings.max_output,
                max_input=settings.max_input,
            )
        case "s3":
            from comfywork.storage.s3 import S3Storage  # noqa: PLC0415

            assert settings.s3 is not None
            return S3Storage(settings.s3, max_output=settings.max_output, max_input=settings.max_input)
        case "queue":
            from comfywork.storage.queued import QueueStorage  # noqa: PLC0415

            assert connection is not None, "STORAGE=queue needs the queue's connection"
            return QueueStorage(
                connection,
                max_output=min(settings.queue_object, settings.max_output),
                max_input=min(settings.queue_object, settings.max_input),
                total=settings.queue_total,
                ttl=settings.retention or _WEEK,
            )
