"""Every byte of an image, layer by layer, as the engine keeps it: also what a later layer deletes or covers."""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from imgbuild.engines.blobs import stored_blobs
from imgbuild.layerstream import Prefixed, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from imagecontainers import Engine

_PIECE = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd
# Secrets that are known by their form. Behind each a text that is in every one of them: looking for it first is
# twenty times as fast, and it is hardly ever there.
PATTERNS = {
    "a private key": (
        b"PRIVATE KEY-----",
        re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+(?:[A-Za-z0-9+/=]{20,}\s+){4}"),
    ),
    "a token of Hugging Face": (b"hf_", re.compile(rb"\bhf_[A-Za-z0-9]{34}\b")),
    "a token of GitHub": (b"ghp_", re.compile(rb"\bghp_[A-Za-z0-9]{36}\b")),
    "a password in a package index's address": (
        b"index-url",
        re.compile(rb"index-url *= *https?://[^/\s:@]{1,64}:[^/\s:@]{3,64}@"),
    ),
}
# What looks like one and is public, each with its reason.
_KNOWN = {
    "a private key": re.compile(r"/libgnutls[^/]*\.so"),  # the keys with which it tests itself at its start
    "a token of Hugging Face": re.compile(r"/transformers/.*testing_utils\."),  # of their staging server
}
# Files that are somebody's own settings, whatever is in them.
_SETTINGS = re.compile(
    r"(^|/)(\.netrc|\.pypirc|pip\.conf|uv\.toml|\.git-credentials|id_(rsa|ed25519)|\.docker/config\.json)$"
)


@dataclass
class Search:
    """What is looked for, and where it was found."""

    words: Mapping[str, bytes] = field(repr=False)
    """Of this machine: what it is, and its text; secrets, so that no message may show them."""
    found: set[tuple[str, str]] = field(default_factory=set)
    """(what, where)"""
    read: int = 0
    """Bytes."""
    layers: int = 0

    def text(self, where: str, data: bytes) -> None:
        for what, word in self.words.items():
            if word in data:
                self.found.add((what, where))
        for what, (text, pattern) in PATTERNS.items():
            known = _KNOWN.get(what)
            if text in data and pattern.search(data) and not (known and known.search(where)):
                self.found.add((what, where))

    def layer(self, stream: IO[bytes]) -> None:
        """One layer's tar: every file by name and content."""
        self.layers += 1
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE) as tar:
            for member in tar:
                if _SETTINGS.search(member.name):
                    self.found.add(("somebody's settings", f"/{member.name}"))
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    self._file(f"/{member.name}", file)

    def _file(self, where: str, file: IO[bytes]) -> None:
        tail = b""
        while piece := file.read(_PIECE):
            self.read += len(piece)
            self.text(where, tail + piece)
            tail = piece[-4096:]


def search_image(
    engine: Engine, image: str, search: Search, *, stored: tuple[Path, str] | None = None
) -> None:
    """Look through all that an image consists of: layers, configuration, attestations.

    `stored` says where the engine keeps its blobs, and the image's digest; without it the engine saves the image.
    """
    if stored:
        for digest, _, file in stored_blobs(*stored):
            _one(f"blobs/sha256/{digest.removeprefix('sha256:')}", file, search)
        return
    words = [*engine.command, "image", "save"]
    if engine.name == "podman":
        words += [
            "--format",
            "oci-archive",
        ]  # Docker's own form has no zstd, and Podman then gives out nothing
    words.append(image)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        with tarfile.open(fileobj=child.stdout, mode="r|", bufsize=_PIECE) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    _one(member.name, file, search)
        while child.stdout.read(_PIECE):
            pass
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {child.returncode}")


def _one(name: str, file: IO[bytes], search: Search) -> None:
    head = file.read(512)
    if head.startswith(_COMPRESSED) or head[257:262] == b"ustar":
        search.layer(plain(cast("IO[bytes]", Prefixed(head, file))))
    else:
        search.text(f"image: {name}", head + file.read())
