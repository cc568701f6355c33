"""The packages in an image: read from its SBOM, from lists in it that are checked, or out of its layers."""

from __future__ import annotations

import gzip
import json
import posixpath
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import zstandard

from imgbuild.errors import EngineError, UnsoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CONSTRAINTS = "/etc/comfyrun/constraints.txt"
"""Of an image of ours: what was installed by the lock, name==version a line."""
VENV = "/opt/venv/pyvenv.cfg"
DPKG = "/var/lib/dpkg/status"
_CHUNK = 1 << 20
_LARGEST = 16_000_000
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!_-]+)\s*(?:[;\\#].*)?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Versions by name; Python's names as PEP 503 writes them."""

    python: Mapping[str, str]
    debian: Mapping[str, str]
    source: str
    """Where that was read, for people."""

    def as_json(self) -> dict[str, Any]:
        return {"python": dict(self.python), "debian": dict(self.debian), "source": self.source}


# --- the SBOM ------------------------------------------------------------------------------------


def of_sbom(raw: bytes) -> Contents:
    """From CycloneDX or SPDX, as JSON, by the package URLs in it. UnsoundError when it is neither."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise UnsoundError("its SBOM is no JSON") from None
    if not isinstance(document, dict):
        raise UnsoundError("its SBOM is no object")
    if document.get("bomFormat") == "CycloneDX":
        urls = [c.get("purl") for c in document.get("components") or () if isinstance(c, dict)]
        kind = "CycloneDX"
    elif "spdxVersion" in document:
        packages = [p for p in document.get("packages") or () if isinstance(p, dict)]
        urls = [
            r.get("referenceLocator")
            for p in packages
            for r in p.get("externalRefs") or ()
            if isinstance(r, dict) and r.get("referenceType") == "purl"
        ]
        kind = "SPDX"
    else:
        raise UnsoundError("its SBOM is neither CycloneDX nor SPDX")
    python: dict[str, str] = {}
    debian: dict[str, str] = {}
    for url in urls:
        found = re.match(r"pkg:(pypi|deb)/(?:[^/@]+/)?([^@?#]+)@([^?#]+)", str(url))
        if found and found[1] == "pypi":
            python[normal(unquote(found[2]))] = unquote(found[3])
        elif found:
            debian[unquote(found[2])] = unquote(found[3])
    return Contents(python=python, debian=debian, source=f"its SBOM ({kind})")


# --- lists in the image --------------------------------------------------------------------------


def of_lists(read: Callable[[Iterable[str]], Mapping[str, bytes | None]]) -> Contents | None:
    """From an image of ours: its pins, each of which must be installed, and dpkg's own list.

    `read` gives small files of the image by their paths. None when the image has no such lists. What somebody
    installed on top of one of ours is in none of them.
    """
    first = read([CONSTRAINTS, VENV, DPKG])
    pins, venv = first.get(CONSTRAINTS), first.get(VENV)
    version = re.search(rb"^version(?:_info)? *= *(\d+\.\d+)", venv or b"", re.MULTILINE)
    if pins is None or version is None:
        return None
    site = f"/opt/venv/lib/python{version[1].decode()}/site-packages"
    wanted = {normal(n): (n, v) for n, v in _PIN.findall(pins.decode(errors="replace"))}
    paths = {f"{site}/{_folder(n)}-{v}.dist-info/METADATA": (key, v) for key, (n, v) in wanted.items()}
    there = read(paths)
    python = {key: v for path, (key, v) in paths.items() if there.get(path) is not None}
    return Contents(
        python=python,
        debian=dpkg_status(first.get(DPKG) or b""),
        source=f"the image's own lists ({len(python)} of {len(paths)} pins are installed)",
    )


def _folder(name: str) -> str:
    """A distribution's name as its .dist-info folder spells it."""
    return re.sub(r"[-_.]+", "_", name)


# --- everything in it ----------------------------------------------------------------------------


@dataclass
class Scan:
    """What a file system, or one layer of it, holds of interest, by absolute path."""

    python: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Folder of a .dist-info → (name, version)."""
    debian: dict[str, dict[str, str]] = field(default_factory=dict)
    """A status file of dpkg → name → version."""
    gone: set[str] = field(default_factory=set)
    """What a layer deletes."""
    emptied: set[str] = field(default_factory=set)
    """Folders of which a layer hides everything below it."""
    bytes: int = 0
    """Of all files."""
    files: int = 0


def scan(stream: IO[bytes], progress: Callable[[int], None] | None = None) -> Scan:
    """Read a tar stream from its beginning to its end. EngineError when it is damaged, or ends too early."""
    found = Scan()
    counted = cast("IO[bytes]", _Counted(stream, progress))
    try:
        with tarfile.open(fileobj=counted, mode="r|", bufsize=_CHUNK) as archive:
            for member in archive:
                _take(found, archive, member)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as e:
        raise EngineError(f"a layer is no whole tar: {e}") from None
    return found


def _take(found: Scan, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = posixpath.normpath("/" + member.name.lstrip("/"))
    folder, name = posixpath.split(path)
    if name == _OPAQUE:
        found.emptied.add(folder)
    elif name.startswith(_WHITEOUT):
        found.gone.add(posixpath.join(folder, name.removeprefix(_WHITEOUT)))
    if not member.isreg():
        return
    found.files += 1
    found.bytes += member.size
    # What a package carries in itself (setuptools/_vendor) is not installed.
    installed = posixpath.basename(posixpath.dirname(folder)) in ("site-packages", "dist-packages")
    if name == "METADATA" and folder.endswith(".dist-info") and installed:
        text = _text(archive, member)
        if both := _metadata(text):
            found.python[folder] = both
    elif path == DPKG or folder == f"{DPKG}.d":
        found.debian[path] = dpkg_status(_text(archive, member))


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read(_LARGEST) if file else b""


def merged(scans: Iterable[Scan], source: str) -> Contents:
    """Layers, from the bottom to the top, as the file system that they make."""
    python: dict[str, tuple[str, str]] = {}
    debian: dict[str, dict[str, str]] = {}
    for layer in scans:
        # A whiteout is for what lies below, whatever its place in the tar.
        for path in [p for p in (*python, *debian) if _hidden(p, layer)]:
            python.pop(path, None)
            debian.pop(path, None)
        python |= layer.python
        debian |= layer.debian
    return Contents(
        python=dict(sorted(python.values())),
        debian={n: v for names in debian.values() for n, v in sorted(names.items())},
        source=source,
    )


def _hidden(path: str, layer: Scan) -> bool:
    above = path
    if above in layer.gone:
        return True
    while above != "/":
        above = posixpath.dirname(above)
        if above in layer.gone or above in layer.emptied:
            return True
    return False


def dpkg_status(raw: bytes) -> dict[str, str]:
    """Name → version of what dpkg calls installed."""
    found = {}
    for block in raw.decode(errors="replace").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): *(.*?) *$", block, flags=re.MULTILINE))
        # Images without dpkg itself (status.d) leave the status out.
        if fields.get("Status", "install ok installed").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return found


def _metadata(raw: bytes) -> tuple[str, str] | None:
    head = raw.decode(errors="replace").partition("\n\n")[0]
    name = re.search(r"^Name: *(\S+) *$", head, flags=re.MULTILINE)
    version = re.search(r"^Version: *(\S+) *$", head, flags=re.MULTILINE)
    return (normal(name[1]), version[1]) if name and version else None


def normal(name: str) -> str:
    """As PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _Counted:
    def __init__(self, stream: IO[bytes], progress: Callable[[int], None] | None) -> None:
        self._stream, self._progress = stream, progress

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        if self._progress:
            self._progress(len(piece))
        return piece
