"""Content on its way in: hashed, counted and limited while it is read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO

from comfywork import quantities
from comfywork.storage import media
from comfywork.storage.base import Stored
from comfywork.storage.errors import StorageError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 20


class Intake:
    """A file to read from, which knows afterwards what went through. It cannot be rewound, so nothing is hashed twice."""

    def __init__(self, content: BinaryIO, size: int | None, *, what: str, limit: int, setting: str) -> None:
        self._content, self._expected = content, size
        self._what, self._limit, self._setting = what, limit, setting
        self._hash = hashlib.sha256()
        self.size = 0
        self.head = b""
        self.failure: BaseException | None = None
        """What the source raised, or what it was refused for: no fault of the storage's."""
        if size is not None and size > limit:
            raise self._too_large()

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._read(size)
        except BaseException as error:
            self.failure = error
            raise

    def _read(self, size: int) -> bytes:
        # One byte beyond the limit is enough to know; the rest of an endless source is never read.
        room = self._limit - self.size + 1
        piece = self._content.read(room if size < 0 else min(size, room))
        if not piece and size != 0:
            self._ended()
        self._hash.update(piece)
        self.size += len(piece)
        if len(self.head) < media.HEAD:
            self.head += piece[: media.HEAD - len(self.head)]
        if self.size > self._limit:
            raise self._too_large()
        if self._expected is not None and self.size > self._expected:
            raise self._wrong_size()
        return piece

    def pieces(self, chunk: int = CHUNK) -> Iterator[bytes]:
        while piece := self.read(chunk):
            yield piece

    def stored(self, key: str) -> Stored:
        """What it turned out to be; `key` says under which name."""
        return Stored(key=key, size=self.size, sha256=self.sha256, media_type=media.decide(self.head, key))

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _ended(self) -> None:
        if self._expected is not None and self.size < self._expected:
            raise self._wrong_size()

    def _wrong_size(self) -> StorageError:
        more = "more" if self.size > (self._expected or 0) else "less"
        return StorageError(
            f"{self._what} has {more} than the {self._expected} bytes that were announced",
            hint="its source was cut short or changed while it was read; read it again",
            retryable=True,
        )

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            self._what, quantities.human(self._limit), hint=f"{self._setting} sets the limit"
        )
