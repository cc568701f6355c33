"""Makes the directories of a Launch, or says who owns what and how to mend it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun import paths
from comfyrun.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfyrun.launch import Directory, File, Machine


_PROBE = b"?" * (1 << 16)
"""One byte finds room on a disk that is full: the database alone needs this much."""


def prepare(directories: Sequence[Directory], machine: Machine) -> None:
    """Create what is missing and try what must be writable. Nothing is ever deleted or changed.

    Raises MachineError with one message for each place that has to be mended.
    """
    messages: dict[str, None] = {}  # an ordered set: ten folders of one bad volume are one message
    for directory in directories:
        path = Path(directory.path)
        if directory.given is not None and not paths.exists(path):
            messages[_absent(path, directory.given)] = None
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
            if directory.needs == "write":
                _try_writing(path)
            elif not os.access(path, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, ValueError) as error:
            messages[_explain(path, directory.needs, error, machine)] = None
    if messages:
        raise MachineError(*messages)


def ready(files: Sequence[File], machine: Machine) -> None:
    """Write the files that have a text; the others have to be readable. Raises MachineError for each trouble."""
    messages: dict[str, None] = {}
    for file in files:
        path = Path(file.path)
        try:
            if file.text is None:
                with path.open("rb"):
                    pass
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, file.text)
        except (FileNotFoundError, IsADirectoryError):
            messages[
                f"{path} ({file.origin}, {file.purpose}) is not there, or no file: mount it into the container "
                f"(docker run -v /where/it/is:{path}:ro)"
            ] = None
        except (OSError, ValueError) as error:
            needs = "read" if file.text is None else "write"
            messages[_explain(path, needs, error, machine)] = None
    if messages:
        raise MachineError(*messages)


def _write(path: Path, text: str) -> None:
    # Several servers may share the volume: the file is whole at every moment. Its name goes by its content.
    new = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _absent(path: Path, given: str) -> str:
    return (
        f"{path} ({given}) is not there, and no empty folder is made in its place: mount what belongs there "
        f"(docker run -v /where/it/is:{path}), or create it"
    )


def _try_writing(path: Path) -> None:
    # os.access knows neither a full disk, nor quotas, nor what a network file system will say.
    # Not the process id: it is the same in every container, and several may share a volume.
    probe = path / f".comfyrun-{os.urandom(8).hex()}"
    try:
        with probe.open("xb") as stream:
            stream.write(_PROBE)
    finally:
        probe.unlink(missing_ok=True)


def _explain(path: Path, needs: str, error: OSError | ValueError, machine: Machine) -> str:
    place = _nearest_existing(path)
    number = error.errno if isinstance(error, OSError) else None
    match number:
        case errno.EACCES | errno.EPERM:
            # What is missing would have to be made in `place`.
            return _not_allowed(place, "write to" if needs == "write" or place != path else "read", machine)
        case errno.EROFS:
            return f"{place} is read-only: mount a writable volume there (docker run -v NAME:{_mount(place)})"
        case errno.ENOSPC | errno.EDQUOT:
            return f"{_mount(place)} is full: free some space on the disk that holds it (df -h)"
        case errno.ENOTDIR | errno.EEXIST:
            return f"{place} is a file, and a directory is needed at {path}"
        case _:
            return f"{path} cannot be used: {error}"


def _not_allowed(place: Path, verb: str, machine: Machine) -> str:
    ids = f"{machine.uid}:{machine.gid}"
    try:
        status = place.stat()
    except OSError as error:
        return f"{place} cannot be looked at by UID {machine.uid}: {error.strerror}"
    owner = f"UID {status.st_uid}, GID {status.st_gid}, mode {status.st_mode & 0o7777:o}"
    mend = f"on the host: chown -R {ids} <what is mounted at {_mount(place)}>"
    if status.st_uid:  # nothing here should run as root
        mend += f"; or run as the owner: --user {status.st_uid}:{status.st_gid}"
    return f"UID {ids} may not {verb} {place} (it belongs to {owner}); {mend}"


def _nearest_existing(path: Path) -> Path:
    return next((place for place in (path, *path.parents) if paths.exists(place)), Path("/"))


def _mount(place: Path) -> Path:
    """The mount point that holds `place`: what a user knows by name."""
    for candidate in (place, *place.parents):
        if paths.is_mount(candidate):
            return candidate if candidate != Path("/") else place
    return place
