"""An OCI image layout in a folder, as BuildKit exports it: what is published is read from here."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from imgbuild.errors import UnsoundError
from imgbuild.layerstream import plain
from imgbuild.manifests import Descriptor, Document, ImageConfig, Index, Manifest, digest_of, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PACKAGES = "usr/share/imgbuild/debian-packages.txt"


class Layout:
    """The one image of a layout. UnsoundError for what is missing in it, or is not what its digest says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            raw = (folder / "index.json").read_bytes()
        except OSError as e:
            raise UnsoundError(f"{folder} holds no image layout: {e.strerror}") from None
        entries = parse(Index, raw, "index.json").manifests
        if len(entries) != 1:
            raise UnsoundError(f"{folder} holds {len(entries)} images, and one was expected")
        self.top = self.document(entries[0])
        """What a tag is to point to: the index around the image and its provenance, or the image's manifest."""

    def document(self, descriptor: Descriptor) -> Document:
        """A manifest or an index."""
        raw = self._read(descriptor.digest)
        if digest_of(raw) != descriptor.digest:
            raise UnsoundError(f"{descriptor.digest} has other bytes than its digest says")
        return Document(media_type=descriptor.media_type, raw=raw)

    def image(self, platform: str) -> Document:
        """The manifest of a platform; UnsoundError when the layout has another, or several."""
        if not self.top.is_index:
            return self.top
        images = self.top.index().images
        there = [str(m.platform) for m in images]
        if there != [platform]:
            raise UnsoundError(f"it holds {', '.join(there) or 'no platform'}, not {platform}")
        return self.document(images[0])

    def attestations(self) -> tuple[Document, ...]:
        """The manifests in the index that are of no platform: provenance."""
        entries = self.top.index().manifests if self.top.is_index else ()
        return tuple(self.document(m) for m in entries if m.is_attestation)

    def config(self, manifest: Manifest) -> ImageConfig:
        return parse(ImageConfig, self._read(manifest.config.digest), "configuration")

    def blob(self, descriptor: Descriptor) -> Path:
        """The file of a blob of the announced size; its digest the registry checks."""
        path = self._path(descriptor.digest)
        size = path.stat().st_size if path.is_file() else None
        if size != descriptor.size:
            raise UnsoundError(f"{descriptor.digest} is {'missing' if size is None else 'not whole'}")
        return path

    def debian_packages(self, manifest: Manifest) -> tuple[tuple[str, str, str], ...]:
        """Name, version and architecture of what Debian brought, as the base wrote it down; empty where it did not."""
        for layer in manifest.layers:
            with (
                self.blob(layer).open("rb") as raw,
                tarfile.open(fileobj=plain(raw), mode="r|") as tar,
            ):
                for member in tar:
                    if member.name.removeprefix("./") == _PACKAGES and (file := tar.extractfile(member)):
                        return tuple(_packages(file.read().decode()))
        return ()

    def _read(self, digest: str) -> bytes:
        try:
            return self._path(digest).read_bytes()
        except OSError:
            raise UnsoundError(f"{digest} is missing") from None

    def _path(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _packages(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.splitlines():
        name, version, architecture = line.split()
        yield name, version, architecture
