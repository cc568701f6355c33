"""Compiled kernels as wheels, stored under the key of everything that shaped them.

`<folder>/<kernel>/<key>/` holds one wheel and entry.json, and nothing else. An
entry appears by one rename, so it is whole or absent. What is found damaged is
moved to `<folder>/rejected/`, told, and counts as absent.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import lzma
import os
import re
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence  # noqa: TC003  (pydantic reads the annotations)
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from imgbuild import fatbin
from imgbuild.errors import ConfigError, DiskError, UnsoundError, VerificationError, first_mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

RECORD_FILE = "entry.json"
_REJECTED = "rejected"
_LOCK = ".lock"
_WORK = ".work-"
_WORK_ABANDONED = 24 * 3600.0  # seconds after which nobody can still be filling a work folder
_NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
_KEY = r"^[0-9a-f]{16}$"
_MACHINES = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    csv.Error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
"""Everything that zipfile, csv and their decoders raise for bytes that are no wheel."""

_Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class Record(BaseModel):
    """What entry.json holds, and the configuration of an artifact: an entry without its place."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal[1] = 1
    kernel: Annotated[str, StringConstraints(pattern=_NAME)]
    version: _Text
    key: Annotated[str, StringConstraints(pattern=_KEY)]
    distribution: _Text
    wheel: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl$", max_length=250)]
    """The file's name."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(gt=0)]
    components: Mapping[str, str]
    inventory: Sequence[Mapping[str, Any]]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_bytes: Annotated[int, Field(ge=0)]
    made: _Text

    @classmethod
    def parse(cls, text: str | bytes) -> Record:
        """UnsoundError with the first mistake."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            raise UnsoundError(f"{RECORD_FILE}: {first_mistake(e)}") from None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A kernel's wheel and what is known of it."""

    kernel: str
    version: str
    key: str
    distribution: str
    """The wheel's own name for itself."""
    wheel: Path
    sha256: str
    size: int
    """Bytes of the wheel."""
    components: Mapping[str, str]
    """Everything that shaped the wheel, by name; the key is made from it."""
    inventory: Sequence[Mapping[str, Any]]
    """The GPU code it holds: `[{file, machine, code: [{kind, arch, count, size}]}]`."""
    seconds: float
    """What compiling took."""
    peak_bytes: int
    """The most memory that compiling took."""
    made: str
    """When: ISO 8601, UTC."""

    @property
    def arches(self) -> tuple[str, ...]:
        """What the binaries hold code for: `sm_121a`; `compute_90` where it is PTX."""
        lists = [binary["code"] for binary in self.inventory if isinstance(binary.get("code"), list)]
        names = {str(code.get("arch")) for codes in lists for code in codes if isinstance(code, dict)}
        known = [name for name in names if re.fullmatch(r"[a-z]{2,10}_[0-9]{2,4}[af]?", name)]
        return tuple(sorted(known, key=lambda name: (int(re.sub(r"\D", "", name)), name)))

    @property
    def platform(self) -> str:
        """In the targets' spelling where it is one of theirs."""
        tag = self.wheel.stem.rpartition("-")[2]
        return next((ours for machine, ours in _MACHINES.items() if tag.endswith(machine)), tag)

    @property
    def record(self) -> Record:
        return Record(**{**{name: getattr(self, name) for name in _SHARED}, "wheel": self.wheel.name})


_SHARED = tuple(name for name in Record.model_fields if name not in ("format", "wheel"))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `verify` found of one entry; `problem` is None when it is sound."""

    kernel: str
    key: str
    entry: Entry | None
    problem: str | None


class Wheelhouse:
    """The local store; any number of processes may use one folder."""

    def __init__(self, folder: Path, *, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say

    def get(self, kernel: str, key: str, *, distribution: str | None = None) -> Entry | None:
        """The sound entry of a key, or None.

        `distribution` is the name the wheel must have; without it, the one that was given to `put`. An entry that is
        not what it says (name, version, size, hash, the wheel's own RECORD) is moved away and told.
        """
        try:
            return self._look(kernel, key, distribution)
        except UnsoundError:
            # Somebody may be replacing it, or be in the middle of rejecting it: only what is unsound under the lock is.
            with self._locked():
                return self._settle(kernel, key, distribution)

    def reject(self, entry: Entry, why: str) -> None:
        """Set a sound entry aside that is not what its key stands for; told, and from then on absent."""
        with self._locked(), contextlib.suppress(FileNotFoundError):  # somebody else did
            self._set_aside(entry.kernel, entry.key, why)

    def put(
        self,
        kernel: str,
        version: str,
        key: str,
        wheel: Path,
        *,
        components: Mapping[str, str],
        inventory: Sequence[Mapping[str, Any]],
        seconds: float,
        peak_bytes: int,
        distribution: str | None = None,
        made: str | None = None,
    ) -> Entry:
        """Copy a wheel into the store; where the key has a sound entry already, that one is returned.

        `distribution` is the name the wheel must have, where it is not the kernel's. VerificationError when the wheel
        is not sound, DiskError when the disk is full; either way the store is as it was.
        """
        _check_names(kernel, key)
        try:
            check_wheel(wheel, distribution=distribution or kernel, version=version)
        except UnsoundError as e:
            raise VerificationError(
                f"{wheel} cannot go into the wheelhouse as {kernel} {version}: {e}"
            ) from None
        if there := self.get(kernel, key, distribution=distribution):
            return there
        with self.work_folder() as work:
            fresh = work / "entry"
            fresh.mkdir()
            sha256, size = _copy(wheel, fresh / wheel.name)
            record = Record(
                kernel=kernel,
                version=version,
                key=key,
                distribution=distribution or kernel,
                wheel=wheel.name,
                sha256=sha256,
                size=size,
                components=dict(components),
                inventory=list(inventory),
                seconds=round(seconds, 1),
                peak_bytes=peak_bytes,
                made=made or datetime.now(UTC).isoformat(timespec="seconds"),
            )
            _write(fresh / RECORD_FILE, record.model_dump_json(indent=2).encode() + b"\n")
            _sync(fresh)
            with self._locked():
                if there := self._settle(kernel, key, distribution):
                    return there
                place = self._place(kernel, key)
                place.parent.mkdir(exist_ok=True)
                fresh.rename(place)
                _sync(place.parent)
        return _entry(record, place)

    def entries(self) -> tuple[Entry, ...]:
        """Every entry by its entry.json, sorted; the wheels are not opened. What cannot be read is told and left out."""
        found = []
        for kernel, key in self._places():
            try:
                found.append(self._read(kernel, key))
            except UnsoundError as e:
                self._say(f"wheelhouse: {kernel} {key} is left out: {e}")
            except FileNotFoundError:  # removed meanwhile
                continue
        return tuple(found)

    def prune(
        self, *, keep: Collection[tuple[str, str]], kernel: str | None = None, dry_run: bool = False
    ) -> tuple[Entry, ...]:
        """Remove entries whose (kernel, key) is not in `keep`, of one kernel or of all; return them.

        With them goes what was rejected, and what a killed process left unfinished.
        """
        removed = tuple(
            e for e in self.entries() if kernel in (None, e.kernel) and (e.kernel, e.key) not in keep
        )
        if dry_run or not self.folder.is_dir():
            return removed
        with self._locked(), tempfile.TemporaryDirectory(dir=self.folder, prefix=_WORK) as work:
            for number, entry in enumerate(removed):
                # First out of sight by one rename: nobody may meet half an entry.
                with contextlib.suppress(FileNotFoundError):
                    self._place(entry.kernel, entry.key).rename(Path(work) / str(number))
                with contextlib.suppress(OSError):  # not empty, or gone
                    (self.folder / entry.kernel).rmdir()
            for folder in self._rejected(kernel):
                if folder.is_dir():
                    shutil.rmtree(folder)
                else:
                    folder.unlink()
            with contextlib.suppress(OSError):
                (self.folder / _REJECTED).rmdir()
            for folder in self.folder.glob(f"{_WORK}*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - folder.stat().st_mtime > _WORK_ABANDONED:
                        shutil.rmtree(folder)
        return removed

    def verify(self, *, kernel: str | None = None, keys: Collection[str] = ()) -> tuple[Verdict, ...]:
        """Look at entries as `get` does, and compare the recorded inventory with the binaries; nothing is moved."""
        verdicts = []
        for name, key in self._places():
            if kernel not in (None, name) or (keys and key not in keys):
                continue
            entry, problem = None, None
            try:
                entry = self._look(name, key, None)
                if entry is None:  # removed meanwhile
                    continue
                _check_inventory(entry)
            except UnsoundError as e:
                problem = str(e)
            verdicts.append(Verdict(kernel=name, key=key, entry=entry, problem=problem))
        return tuple(verdicts)

    @contextlib.contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder on the store's file system that is gone afterwards; a full disk becomes a DiskError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=_WORK) as work:
                yield Path(work)
        except OSError as e:
            if e.errno not in _FULL:
                raise
            raise DiskError(
                f"the disk of the wheelhouse is full: {self.folder}",
                hint="imgbuild df shows what takes it, imgbuild prune frees it",
            ) from None

    def _look(self, kernel: str, key: str, distribution: str | None) -> Entry | None:
        """The entry; None when there is none, UnsoundError when it is not what it should be."""
        _check_names(kernel, key)
        try:
            entry = self._read(kernel, key)
        except FileNotFoundError:
            return None
        if distribution is not None and not _same_name(entry.distribution, distribution):
            raise UnsoundError(f"holds a wheel of {entry.distribution}, not of {distribution}")
        try:
            size = entry.wheel.stat().st_size
            with entry.wheel.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise UnsoundError(f"{entry.wheel.name} is missing") from None
        if size != entry.size:
            raise UnsoundError(f"{entry.wheel.name} has {size} bytes, not {entry.size}")
        if sha256 != entry.sha256:
            raise UnsoundError(f"{entry.wheel.name} has the hash {sha256[:12]}…, not {entry.sha256[:12]}…")
        check_wheel(entry.wheel, distribution=entry.distribution, version=entry.version)
        return entry

    def _read(self, kernel: str, key: str) -> Entry:
        """An entry by its entry.json; FileNotFoundError when its folder is not there."""
        place = self._place(kernel, key)
        try:
            names = {path.name for path in place.iterdir()}
        except NotADirectoryError:
            raise UnsoundError("is a file, not a folder") from None
        try:
            record = Record.parse((place / RECORD_FILE).read_bytes())
        except (FileNotFoundError, IsADirectoryError):
            raise UnsoundError(f"{RECORD_FILE} is missing") from None
        if (record.kernel, record.key) != (kernel, key):
            raise UnsoundError(f"{RECORD_FILE} is that of {record.kernel} {record.key}")
        if missing := {record.wheel, RECORD_FILE} - names:
            raise UnsoundError(f"{min(missing)} is missing")
        if more := names - {record.wheel, RECORD_FILE}:
            raise UnsoundError(f"holds {min(more)!r} too")
        return _entry(record, place)

    def _settle(self, kernel: str, key: str, distribution: str | None) -> Entry | None:
        """The sound entry, or None after moving away an unsound one; the lock is held."""
        try:
            return self._look(kernel, key, distribution)
        except UnsoundError as e:
            self._set_aside(kernel, key, str(e))
            return None

    def _set_aside(self, kernel: str, key: str, why: str) -> None:
        """Move an entry out of the way; the lock is held."""
        rejected = self.folder / _REJECTED
        rejected.mkdir(exist_ok=True)
        place = rejected / f"{kernel}-{key}"
        number = 1
        while place.exists():
            number += 1
            place = rejected / f"{kernel}-{key}-{number}"
        self._place(kernel, key).rename(place)
        with contextlib.suppress(OSError):  # not empty
            (self.folder / kernel).rmdir()
        self._say(f"wheelhouse: {kernel} {key} is not used: {why}; it lies in {place} now")

    def _place(self, kernel: str, key: str) -> Path:
        return self.folder / kernel / key

    def _places(self) -> list[tuple[str, str]]:
        kernels = self.folder.iterdir() if self.folder.is_dir() else ()
        found = []
        for folder in kernels:
            if not folder.is_dir() or folder.name == _REJECTED or not re.fullmatch(_NAME, folder.name):
                continue
            found += [
                (folder.name, place.name) for place in folder.iterdir() if re.fullmatch(_KEY, place.name)
            ]
        return sorted(found)

    def _rejected(self, kernel: str | None) -> list[Path]:
        pattern = re.compile(rf"{re.escape(kernel) if kernel else '.+'}-[0-9a-f]{{16}}(-\d+)?")
        folder = self.folder / _REJECTED
        return [p for p in folder.iterdir() if pattern.fullmatch(p.name)] if folder.is_dir() else []

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes; for moments in which an entry appears, goes or is judged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A file, not the folder: NFS locks only what is open for writing.
        with (self.folder / _LOCK).open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def check_wheel(path: Path, *, distribution: str, version: str) -> None:
    """UnsoundError unless a file is a whole wheel of that name and version.

    Whole: a readable zip, in which every file is in RECORD with its hash, and nothing of RECORD is missing. A local
    version (`2.8.3+cu130`) is the version it belongs to, unless `version` has one too.
    """
    try:
        name, found, _, _ = parse_wheel_filename(path.name)
        _check_identity("the file's name", str(name), str(found), distribution, version)
        with zipfile.ZipFile(path) as archive:
            info = _dist_info(archive)
            metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"), headersonly=True)
            _check_identity(
                "METADATA", str(metadata["Name"]), str(metadata["Version"]), distribution, version
            )
            _check_record(archive, info)
    except PermissionError:
        raise
    except FileNotFoundError:
        raise UnsoundError("there is no such file") from None
    except _UNREADABLE as e:
        raise UnsoundError(f"{path.name} is no whole wheel: {str(e) or type(e).__name__}") from None


def _check_identity(where: str, name: str, found: str, distribution: str, version: str) -> None:
    if not _same_name(name, distribution):
        raise UnsoundError(f"{where} says {name}, not {distribution}")
    try:
        asked, given = Version(version), Version(found)
    except InvalidVersion as e:
        raise UnsoundError(f"{where}: {e}") from None
    if asked != (given if asked.local else Version(given.public)):
        raise UnsoundError(f"{where} says version {found}, not {version}")


def _same_name(one: str, other: str) -> bool:
    return canonicalize_name(one) == canonicalize_name(other)


def _dist_info(archive: zipfile.ZipFile) -> str:
    tops = {name.partition("/")[0] for name in archive.namelist()}
    found = [top for top in tops if top.endswith(".dist-info")]
    if len(found) != 1:
        raise UnsoundError(f"holds {len(found) or 'no'} .dist-info folders")
    return found[0]


def _check_record(archive: zipfile.ZipFile, info: str) -> None:
    signed = {f"{info}/RECORD{suffix}" for suffix in ("", ".jws", ".p7s")}
    with io.TextIOWrapper(archive.open(f"{info}/RECORD"), "utf-8", newline="") as file:
        recorded = {row[0]: row[1] for row in csv.reader(file) if row}
    seen = set()
    for member in archive.infolist():
        name = member.filename
        if member.is_dir() or name in signed:
            continue
        if name in seen:
            raise UnsoundError(f"holds {name} twice")
        seen.add(name)
        algorithm, _, expected = recorded.get(name, "").partition("=")
        if algorithm not in ("sha256", "sha384", "sha512"):
            raise UnsoundError(f"RECORD has no hash of {name}")
        digest = hashlib.new(algorithm)
        with archive.open(member) as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
        if digest.digest() != _unbase64(expected):
            raise UnsoundError(f"{name} is not what RECORD says")
    if missing := set(recorded) - seen - signed:
        raise UnsoundError(f"lacks {min(missing)}, which is in RECORD")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _check_inventory(entry: Entry) -> None:
    try:
        found = fatbin.inventory(entry.wheel)
    except fatbin.FatbinError as e:
        raise UnsoundError(str(e)) from None
    if found != list(entry.inventory):
        raise UnsoundError("its binaries do not hold the code that was recorded of them")


def _check_names(kernel: str, key: str) -> None:
    """They become paths."""
    if not re.fullmatch(_NAME, kernel) or kernel == _REJECTED:
        raise ConfigError(f"{kernel!r} cannot be a kernel's name")
    if not re.fullmatch(_KEY, key):
        raise ConfigError(f"{key!r} is no key: 16 digits of 0-9 and a-f")


def _entry(record: Record, place: Path) -> Entry:
    return Entry(**{name: getattr(record, name) for name in _SHARED}, wheel=place / record.wheel)


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file through to the disk; its sha256 and its bytes."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(1 << 20):
            digest.update(chunk)
            size += writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest(), size


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """So that names survive a power cut too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
