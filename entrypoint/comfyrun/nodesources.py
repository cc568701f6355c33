"""Gets the code of a custom node: from a folder, an archive with a hash, or a git repository at a commit."""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tarfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from comfyrun import redact
from comfyrun.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MEMBERS = 200_000
_LARGEST = 8 << 30  # bytes, unpacked
_DOWNLOAD = 2 << 30
_TIMEOUT = 60  # seconds without a byte
_LEFT_OUT = {".git", "__pycache__", ".venv", "node_modules"}

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.(gz|xz|bz2))$", re.IGNORECASE)
_VERSION = re.compile(r"-([0-9a-f]{7,40}|main|master|v?\d+(\.\d+)*)$")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

# Hosts that hand out a commit as an archive: nothing but Python is needed for those.
_ARCHIVES = {
    "github.com": "{url}/archive/{commit}.tar.gz",
    "codeberg.org": "{url}/archive/{commit}.tar.gz",
    "gitlab.com": "{url}/-/archive/{commit}/{name}-{commit}.tar.gz",
    "bitbucket.org": "{url}/get/{commit}.tar.gz",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was asked for."""

    text: str
    """Without what may be a password, to be shown and kept."""
    kind: str
    """folder, archive or git."""
    place: str
    """A path or an address."""
    name: str
    commit: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    folder: Path
    sha256: str | None
    """Of the archive that it came in."""
    notes: tuple[str, ...]


def parse(text: str, *, name: str | None = None, sha256: str | None = None) -> Source:
    """Raises ConfigError when that is no source, or one whose content nobody could tell."""
    shown = redact.of().text(text)
    if sha256 is not None and not _SHA256.fullmatch(sha256.lower()):
        raise ConfigError(f"--sha256 {sha256} is no SHA-256: 64 hexadecimal digits")
    if name is not None:
        _check_name(name)
    hashed = sha256.lower() if sha256 else None
    if "://" not in text:
        return _local(text, shown, name, hashed)
    address, _, commit = text.removeprefix("git+").rpartition("@")
    if _COMMIT.fullmatch(commit):
        address = address.rstrip("/").removesuffix(".git")
        return Source(
            text=shown, kind="git", place=address, name=_named(name, address), commit=commit, sha256=hashed
        )
    address = text.partition("#")[0]
    if not _ARCHIVE.search(urllib.parse.urlsplit(address).path):
        raise ConfigError(
            f"{shown} names no content for certain: give a git repository with a whole commit, URL@COMMIT "
            "(40 digits; branches and tags move), or an archive (.zip, .tar.gz) with --sha256"
        )
    if hashed is None:
        raise ConfigError(f"{shown}: an archive from a network needs --sha256 (sha256sum FILE prints it)")
    if not address.startswith(("https://", "http://")):
        raise ConfigError(f"{shown}: archives are fetched by https or http, or are files at hand")
    return Source(text=shown, kind="archive", place=address, name=_named(name, address), sha256=hashed)


def _local(text: str, shown: str, name: str | None, sha256: str | None) -> Source:
    path = Path(text)
    try:
        kind = "folder" if path.is_dir() else "archive" if path.is_file() else ""
        path = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{shown} cannot be looked at: {error}") from None
    if not kind:
        raise ConfigError(
            f"{shown} is neither a folder nor a file here, and no address: what lies on the host has to be mounted "
            "into the container"
        )
    if kind == "folder" and sha256:
        raise ConfigError(f"--sha256 is for archives, and {shown} is a folder")
    return Source(text=str(path), kind=kind, place=str(path), name=_named(name, path.name), sha256=sha256)


def _named(name: str | None, place: str) -> str:
    if name is not None:
        return name
    last = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(place).path or place)).name
    found = _VERSION.sub("", _ARCHIVE.sub("", last).removesuffix(".git"))
    try:
        _check_name(found)
    except ConfigError:
        raise ConfigError(f"{found!r} cannot be a node's folder: give it a name with --name") from None
    return found


def _check_name(name: str) -> None:
    # ComfyUI skips a folder that ends in .disabled.
    if not NAME.fullmatch(name) or name.endswith((".disabled", ".py")):
        raise ConfigError(f"--name {name!r}: letters, digits, `_`, `-` and `.` make a node's name")


def fetch(source: Source, work: Path, say: Callable[[str], None]) -> Fetched:
    """Its code, in a folder below `work`, which exists. Raises ConfigError or MachineError."""
    folder = work / source.name
    sha256: str | None = None
    notes: list[str] = []
    if source.kind == "folder":
        _copy(Path(source.place), folder)
    elif source.kind == "git" and shutil.which("git"):
        _clone(source, folder)
    else:
        archive = Path(source.place)
        if source.kind == "git" or "://" in source.place:
            archive = work / "archive"
            _download(_address(source), archive, say)
        sha256 = _hash(archive)
        if source.sha256 and sha256 != source.sha256:
            raise ConfigError(
                f"{source.text} is not what was asked for: its SHA-256 is {sha256}, wanted was {source.sha256}"
            )
        skipped = _unpack(archive, folder, source.text)
        if skipped:
            notes.append(f"{source.name}: {skipped} links and special files of the archive were left out")
        if (folder / ".gitmodules").exists():
            notes.append(
                f"{source.name} has git submodules, and an archive has them not: it may be incomplete"
            )
    if not (folder / "__init__.py").is_file():
        raise ConfigError(f"{source.text} is no custom node: there is no __init__.py at its top")
    return Fetched(folder=folder, sha256=sha256, notes=tuple(notes))


def _copy(origin: Path, folder: Path) -> None:
    try:
        shutil.copytree(origin, folder, symlinks=True, ignore=lambda _, names: _LEFT_OUT & set(names))
    except (OSError, shutil.Error) as error:
        raise MachineError(f"{origin} cannot be copied: {_first(error)}") from None


def _first(error: OSError) -> str:
    """copytree collects its troubles; the first says enough."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def _clone(source: Source, folder: Path) -> None:
    folder.mkdir()
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    commands = [
        ["init", "--quiet"],
        # What a commit holds follows from its name: git refuses anything else.
        ["fetch", "--quiet", "--depth", "1", "--", source.place, source.commit or ""],
        ["-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"],
        ["submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1"],
    ]
    for command in commands:
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            said = redact.of(os.environ).text(
                done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
            )
            raise MachineError(f"{source.text}: git {command[0].lstrip('-')} failed: {said}")
    shutil.rmtree(folder / ".git")


def _address(source: Source) -> str:
    if source.kind != "git":
        return source.place
    host = (urllib.parse.urlsplit(source.place).hostname or "").removeprefix("www.")
    pattern = _ARCHIVES.get(host)
    if pattern is None:
        raise ConfigError(
            f"{source.text}: there is no git in this image, and comfyrun knows no archives of {host or 'that host'}: "
            "clone it on the host and install the folder, or give an archive with --sha256"
        )
    name = PurePosixPath(source.place).name
    return pattern.format(url=source.place, commit=source.commit, name=name)


def _download(address: str, path: Path, say: Callable[[str], None]) -> None:
    shown = redact.of(os.environ).text(address)
    say(f"fetching {shown}")
    request = urllib.request.Request(address, headers={"User-Agent": "comfyrun"})  # noqa: S310  (http and https only)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, path.open("wb") as file:  # noqa: S310
            size = 0
            while part := answer.read(1 << 20):
                size += len(part)
                if size > _DOWNLOAD:
                    raise ConfigError(f"{shown} is larger than {_DOWNLOAD >> 30} GiB")
                file.write(part)
    except (OSError, ValueError) as error:
        # urllib's errors are OSErrors; so is a full disk.
        raise MachineError(f"{shown} cannot be fetched: {error}") from None


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from None


# --- archives: nothing of one is trusted, neither its paths nor its sizes ----------------------


@dataclass(frozen=True)
class _Member:
    path: PurePosixPath
    size: int
    executable: bool
    open: Callable[[], IO[bytes] | None]


_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def _unpack(archive: Path, folder: Path, shown: str) -> int:
    """Unpacks files and folders; how many members were something else."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                files = sum(not i.is_dir() for i in opened.infolist())
                return _write(list(_of_zip(opened)), files, folder, shown)
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            return _write(list(_of_tar(tar, members)), sum(not m.isdir() for m in members), folder, shown)
    except _UNREADABLE as error:
        raise ConfigError(f"{shown} is no archive that can be read (zip, tar): {error}") from None
    except OSError as error:
        raise MachineError(f"{shown} cannot be unpacked: {error.strerror or error}") from None


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG):
            opened = functools.partial(archive.open, info)
            yield _Member(PurePosixPath(info.filename), info.file_size, bool(mode & 0o100), opened)


def _of_tar(archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Iterator[_Member]:
    for info in members:
        if info.isreg():
            opened = functools.partial(archive.extractfile, info)
            yield _Member(PurePosixPath(info.name), info.size, bool(info.mode & 0o100), opened)


def _write(members: list[_Member], there: int, folder: Path, shown: str) -> int:
    if len(members) > _MEMBERS or sum(m.size for m in members) > _LARGEST:
        raise ConfigError(
            f"{shown} is too large: {len(members)} files, {sum(m.size for m in members) >> 20} MiB"
        )
    # What hosts hand out has everything in one folder, named after the commit.
    tops = {m.path.parts[0] for m in members if m.path.parts}
    strip = len(tops) == 1 and all(len(m.path.parts) > 1 for m in members)
    for member in members:
        parts = member.path.parts[1:] if strip else member.path.parts
        if (
            member.path.is_absolute()
            or not parts
            or any(p in ("..", "") or "\0" in p for p in member.path.parts)
        ):
            raise ConfigError(f"{shown} holds a path that leads out of it: {str(member.path)[:100]!r}")
        if _LEFT_OUT & set(parts):
            continue
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = member.open()
        if content is not None:
            with content, target.open("xb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            target.chmod(0o755 if member.executable else 0o644)
    folder.mkdir(exist_ok=True)
    return there - len(members)
