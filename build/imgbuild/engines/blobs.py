"""An image's blobs where containerd keeps them on this machine's disk.

`docker image save` gives out some 40 MB a second whatever the disk can do
(measured, Docker 26.1; containerd's own content API: 30), so a test that reads
whole images reads the files, where it may, and asks the engine where it may not.
"""

from __future__ import annotations

import json
import os
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from imgbuild.layerstream import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PLACES = (
    "containerd/daemon/io.containerd.content.v1.content",  # a containerd that dockerd started
    "../containerd/io.containerd.content.v1.content",  # the system's own
)
_PIECE = 1 << 20
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_LARGEST = 16_000_000
"""Bytes of a document: an index, a manifest, a configuration, an attestation."""


def blob_folder(data_root: Path | None, digest: str) -> Path | None:
    """Where the blobs lie, if the one of `digest` is among them and this process may read it."""
    for place in _PLACES if data_root else ():
        folder = Path(os.path.normpath(Path(str(data_root)) / place)) / "blobs/sha256"
        if os.access(folder / digest.removeprefix("sha256:"), os.R_OK):
            return folder
    return None


def stored_blobs(folder: Path, digest: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(digest, bytes, stream) of everything that an image consists of, each once, documents before what they name.

    What an index names and the store has not (another platform's manifest) is left out.
    """
    wanted, seen = [digest], {digest}
    while wanted:
        name = wanted.pop(0)
        with ExitStack() as stack:
            try:
                file = stack.enter_context((folder / name.removeprefix("sha256:")).open("rb"))
            except FileNotFoundError:
                continue
            size = os.fstat(file.fileno()).st_size
            if size < _LARGEST and file.peek(1)[:1] == b"{":
                for found in _named(file.read()):
                    if found not in seen:
                        seen.add(found)
                        wanted.append(found)
                file.seek(0)
            yield name, size, file


def layer_blobs(folder: Path, digest: str) -> list[Path] | None:
    """The layers of an image, from the bottom to the top; None where the digest is not one platform's manifest."""
    document: Any = json.loads((folder / digest.removeprefix("sha256:")).read_bytes())
    if "layers" not in document:  # an index: the platforms that the store has, without their attestations
        files = [folder / str(part["digest"]).removeprefix("sha256:") for part in document["manifests"]]
        there = [json.loads(file.read_bytes()) for file in files if file.exists()]
        images = [m for m in there if not any("in-toto" in layer["mediaType"] for layer in m["layers"])]
        if len(images) != 1:
            return None
        (document,) = images
    found = [folder / str(layer["digest"]).removeprefix("sha256:") for layer in document["layers"]]
    return found if all(os.access(file, os.R_OK) for file in found) else None


def members(layers: Sequence[Path]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, bool]]:
    """Every member of every layer, from the top to the bottom, and whether a layer above covers or deletes it.

    As the OCI image specification merges them: `.wh.NAME` deletes NAME, `.wh..wh..opq` what lies in its folder below.
    """
    covered: set[str] = set()
    gone: set[str] = set()  # folders of which nothing from further below is seen
    for layer in reversed(layers):
        here: set[str] = set()
        gone_here: set[str] = set()
        with (
            layer.open("rb") as file,
            tarfile.open(fileobj=plain(file), mode="r|", bufsize=_PIECE) as archive,
        ):
            for member in archive:
                path = member.name.strip("/").removeprefix("./")
                folder, _, name = path.rpartition("/")
                if name == _OPAQUE:
                    gone_here.add(folder)
                elif name.startswith(_WHITEOUT):
                    deleted = f"{folder}/{name.removeprefix(_WHITEOUT)}".strip("/")
                    here.add(deleted)
                    gone_here.add(deleted)
                else:
                    yield archive, member, path in covered or (bool(gone) and _below(path, gone))
                    here.add(path)
                    if not member.isdir():
                        gone_here.add(path)  # a file where a layer below has a folder
        covered |= here
        gone |= gone_here


def _below(path: str, folders: set[str]) -> bool:
    while path:
        path = path.rpartition("/")[0]
        if path in folders:
            return True
    return False


def _named(text: bytes) -> list[str]:
    """The digests that an index or a manifest names."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        return []
    parts = [document.get("config"), *(document.get("manifests") or ()), *(document.get("layers") or ())]
    return [str(part["digest"]) for part in parts if isinstance(part, dict) and "digest" in part]
