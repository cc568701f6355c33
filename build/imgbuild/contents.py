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
from imgbuild.plan import COMFYUI_VENV, WORK, WORK_VENV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CONSTRAINTS = "/etc/comfyrun/constraints.txt"
"""Of an image of ours: what was installed by the lock, name==version a line."""
VENV = "/opt/venv/pyvenv.cfg"
WORK_PINS = f"{WORK_VENV}/constraints.txt"
"""The same of the venv of `comfyrun worker`."""
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
    work: Mapping[str, str] = field(default_factory=dict)
    """Of the venv of `comfyrun worker`; `python` is everything else's."""
    source: str
    """Where that was read, for people."""

    def as_json(self) -> dict[str, Any]:
        return {
            "python": dict(self.python),
            "debian": dict(self.debian),
            "work": dict(self.work),
            "source": self.source,
        }


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
        parts = [c for c in document.get("components") or () if isinstance(c, dict)]
        urls = [(c.get("purl"), str(c.get("bom-ref")).startswith(f"{WORK}/")) for c in parts]
        kind = "CycloneDX"
    elif "spdxVersion" in document:
        packages = [p for p in document.get("packages") or () if isinstance(p, dict)]
        urls = [
            (r.get("referenceLocator"), False)
            for p in packages
            for r in p.get("externalRefs") or ()
            if isinstance(r, dict) and r.get("referenceType") == "purl"
        ]
        kind = "SPDX"
    else:
        raise UnsoundError("its SBOM is neither CycloneDX nor SPDX")
    python: dict[str, str] = {}
    debian: dict[str, str] = {}
    work: dict[str, str] = {}
    for url, of_work in urls:
        found = re.match(r"pkg:(pypi|deb)/(?:[^/@]+/)?([^@?#]+)@([^?#]+)", str(url))
        if found and found[1] == "pypi":
            (work if of_work else python)[normal(unquote(found[2]))] = unquote(found[3])
        elif found:
            debian[unquote(found[2])] = unquote(found[3])
    return Contents(python=python, debian=debian, work=work, source=f"its SBOM ({kind})")


# --- lists in the image --------------------------------------------------------------------------


def of_lists(read: Callable[[Iterable[str]], Mapping[str, bytes | None]]) -> Contents | None:
    """From an image of ours: its pins, each of which must be installed, and dpkg's own list.

    `read` gives small files of the image by their paths. None when the image has no such lists. What somebody
    installed on top of one of ours is in none of them.
    """
    first = read([CONSTRAINTS, VENV, DPKG, WORK_PINS])
    pins, venv = first.get(CONSTRAINTS), first.get(VENV)
    version = re.search(rb"^version(?:_info)? *= *(\d+\.\d+)", venv or b"", re.MULTILINE)
    if pins is None or version is None:
        return None
    site = f"lib/python{version[1].decode()}/site-packages"
    of_venv = _wanted(pins, f"{COMFYUI_VENV}/{site}")
    of_work = _wanted(first.get(WORK_PINS) or b"", f"{WORK_VENV}/{site}")
    there = read([*of_venv, *of_work])
    python, work = (
        {name: v for path, (name, v) in wanted.items() if there.get(path) is not None}
        for wanted in (of_venv, of_work)
    )
    installed, pinned = len(python) + len(work), len(of_venv) + len(of_work)
    return Contents(
        python=python,
        debian=dpkg_status(first.get(DPKG) or b""),
        work=work,
        source=f"the image's own lists ({installed} of {pinned} pins are installed)",
    )


def _wanted(pins: bytes, site: str) -> dict[str, tuple[str, str]]:
    """Of each pin, by the path of its METADATA: name and version."""
    found = _PIN.findall(pins.decode(errors="replace"))
    return {f"{site}/{_folder(n)}-{v}.dist-info/METADATA": (normal(n), v) for n, v in found}


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
    of_work = {path for path in python if path.startswith(f"{WORK_VENV}/")}
    return Contents(
        python=dict(sorted(both for path, both in python.items() if path not in of_work)),
        work=dict(sorted(python[path] for path in of_work)),
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
