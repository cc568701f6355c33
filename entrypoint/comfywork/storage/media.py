"""What an object is, by its first bytes. What a caller or a file name claims decides nothing that a browser would run."""

from __future__ import annotations

import posixpath

HEAD = 64
"""Bytes that `sniff` looks at."""

UNKNOWN = "application/octet-stream"

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "application/ogg"),
    (b"glTF", "model/gltf-binary"),
)
_RIFF = {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo", b"WAVE": "audio/wav"}
_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}

# No magic to know them by, and harmless: they are served as attachments.
_PASSIVE = {".json": "application/json", ".txt": "text/plain", ".csv": "text/csv"}

_INLINE = ("image/", "video/", "audio/")


def sniff(head: bytes) -> str | None:
    """The media type of an image, a video or a sound; None when it is none that we know."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: the document's type follows within the first element
        return "video/webm" if b"webm" in head else "video/x-matroska"
    return None


def decide(head: bytes, name: str) -> str:
    """The type that `name` with these first bytes is stored and served with."""
    return sniff(head) or _PASSIVE.get(posixpath.splitext(name)[1], UNKNOWN)


def inline(media_type: str) -> bool:
    """Whether a browser may show it in place. Everything else is served as an attachment."""
    return media_type.startswith(_INLINE) and media_type != "image/svg+xml"


def disposition(media_type: str, name: str) -> str:
    """A Content-Disposition. Send `X-Content-Type-Options: nosniff` with it."""
    return f'{"inline" if inline(media_type) else "attachment"}; filename="{name}"'
