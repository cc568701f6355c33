"""The pixels of a PNG, so that the tests need no imaging library: 8 bits, RGB or RGBA, not interlaced."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}


@dataclass(frozen=True, kw_only=True)
class Picture:
    width: int
    height: int
    channels: int
    rows: tuple[bytes, ...]

    def colors(self) -> set[tuple[int, ...]]:
        step = self.channels
        return {tuple(row[x : x + step]) for row in self.rows for x in range(0, len(row), step)}


def decode(data: bytes) -> Picture:
    """Raises ValueError for what is no such PNG."""
    if not data.startswith(SIGNATURE):
        raise ValueError(f"not a PNG: it begins with {data[:8]!r}")
    header, packed, position = b"", b"", len(SIGNATURE)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed += body
        position += 12 + length
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or color not in _CHANNELS or interlaced:
        raise ValueError(f"a PNG of depth {depth}, colour type {color}, interlace {interlaced}")
    return Picture(
        width=width,
        height=height,
        channels=_CHANNELS[color],
        rows=_unfilter(zlib.decompress(packed), width * _CHANNELS[color], height, _CHANNELS[color]),
    )


def _unfilter(raw: bytes, stride: int, height: int, step: int) -> tuple[bytes, ...]:
    rows: list[bytes] = []
    above = bytes(stride)
    for y in range(height):
        start = y * (stride + 1)
        kind, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for x in range(stride):
            left = line[x - step] if x >= step else 0
            corner = above[x - step] if x >= step else 0
            line[x] = (line[x] + _predict(kind, left, above[x], corner)) & 0xFF
        above = bytes(line)
        rows.append(above)
    return tuple(rows)


def _predict(kind: int, left: int, up: int, corner: int) -> int:
    match kind:
        case 0:
            return 0
        case 1:
            return left
        case 2:
            return up
        case 3:
            return (left + up) // 2
        case 4:
            guess = left + up - corner
            return min((left, up, corner), key=lambda value: abs(guess - value))
        case _:
            raise ValueError(f"PNG filter {kind}")
