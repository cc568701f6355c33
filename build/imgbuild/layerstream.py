"""Streams of layers and archives, read once from their beginning to their end."""

from __future__ import annotations

import gzip
import io
from typing import IO, cast

import zstandard

TAR_END = 1024
"""Zeros at a tar file's end, in bytes."""
_PIECE = 1 << 20


def plain(blob: IO[bytes]) -> IO[bytes]:
    """A layer's tar, whether its blob is compressed with zstd, with gzip, or not at all."""
    head = blob.read(4)
    whole = cast("IO[bytes]", Prefixed(head, blob))
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=whole))
    if head == b"\x28\xb5\x2f\xfd":
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True))
    return whole


class Prefixed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head and size >= 0:
            taken, self._head = self._head[:size], self._head[size:]
            return taken
        head, self._head = self._head, b""
        return head + self._rest.read(size)


class Tail:
    """A stream whose end is looked at: tarfile takes one that stops between two files for whole."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._last = (self._last + piece[-TAR_END:])[-TAR_END:]
        return piece

    def ended(self) -> bool:
        """Read what is left; whether the last of all is a tar file's end mark."""
        while self.read(_PIECE):
            pass
        return self._last == bytes(TAR_END)
