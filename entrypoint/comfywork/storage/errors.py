"""What storage refuses or fails with. No message holds a password, a key's secret or a signed address."""

from __future__ import annotations

from comfywork.errors import ComfyworkError, ConfigError


class StorageError(ComfyworkError):
    """Storage did not do it: what happened, and the next step as `hint`.

    `retryable`: the same call may succeed later, or from another worker, without anybody changing a setting. When it
    is not, every job would fail in the same way (a wrong bucket, a wrong key): a worker hands its job back and stops
    rather than failing it.
    """

    exit_code = 69

    def __init__(self, message: str, *, hint: str = "", retryable: bool) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.hint}" if self.hint else super().__str__()


class MissingError(StorageError):
    """There is no such object (any more)."""

    def __init__(self, key: str, *, hint: str = "") -> None:
        super().__init__(f"{key} is not in the storage", hint=hint, retryable=False)
        self.key = key


class TooLargeError(StorageError):
    """An object is larger than its limit; nothing of it was kept. This job's own fault: the next one may be stored."""

    def __init__(self, what: str, limit: str, *, hint: str) -> None:
        super().__init__(f"{what} is larger than {limit}", hint=hint, retryable=False)


class KeyNameError(ConfigError):
    """No name of an output, an input or a key; nothing outside the storage's own tree can be named."""
