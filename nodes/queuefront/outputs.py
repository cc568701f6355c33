"""A job's files in the folders of this ComfyUI, under the names that it would have given them itself."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .port import Port
    from .records import Record

_NUMBERED = re.compile(r"(?P<base>.+)_(?P<number>\d{5,})(?P<tail>(?:_|-audio)?\.[^/]+)")
"""ComfyUI_00001_.png, and as others write it: AnimateDiff_00001.mp4, AnimateDiff_00001-audio.mp4."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_PIECE = 1 << 20

Entry = dict[str, Any]
Shifts = dict[tuple[Path, str], int]
"""Folder and name without its number → what is added to a worker's number, which counts in a folder of the job's own."""


def names_files(output: Any) -> bool:
    """Whether a node's output, as ComfyUI shows it, names a file."""
    return isinstance(output, dict) and any(True for _ in _entries(output))


def _entries(output: Mapping[str, Any]) -> Iterator[Entry]:
    """In the order in which a worker counts them."""
    for entries in output.values():
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
                yield entry


class Shelf:
    """Where files are put. One for all prompts of this process."""

    def __init__(self, output: Path, temporary: Path, keep: Callable[[Record], None]) -> None:
        self._roots = {"output": output, "temp": temporary}
        self._keep = keep
        self._lock = threading.Lock()

    async def collect(
        self, port: Port, record: Record, job: Mapping[str, Any], history: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What ComfyUI's history says of the job's outputs, with every file here and under the name that it has here."""
        stored = list(job.get("outputs") or ())
        shown = copy.deepcopy(dict((history or {}).get("outputs") or {})) or _guessed(stored)
        shifts: Shifts = {}
        for node, output in shown.items():
            if isinstance(output, dict):
                await self._node(port, record, str(node), output, stored, shifts)
        return shown

    async def _node(
        self,
        port: Port,
        record: Record,
        node: str,
        output: dict[str, Any],
        stored: list[Mapping[str, Any]],
        shifts: Shifts,
    ) -> None:
        missing = []
        for entry in list(_entries(output)):
            kind = str(entry.get("type") or "output")
            found = _stored(stored, node, entry) if kind in self._roots else None
            if found is None:
                missing.append(entry)
                continue
            part = self._roots[kind] / f".{record.id}-{_UNSAFE.sub('_', _file(found))}.part"
            await asyncio.to_thread(part.parent.mkdir, parents=True, exist_ok=True)
            try:
                await port.fetch(record.id, found, part)
                place = await asyncio.to_thread(self._place, record, kind, entry, found, part, shifts)
            finally:
                part.unlink(missing_ok=True)
            entry["filename"], entry["subfolder"] = place.name, str(place.parent).strip(".")
            if "fullpath" in entry:
                entry["fullpath"] = str(self._roots[kind] / place)
        for name, entries in output.items():
            if isinstance(entries, list):
                output[name] = [entry for entry in entries if not any(entry is one for one in missing)]

    def _place(
        self,
        record: Record,
        kind: str,
        entry: Entry,
        stored: Mapping[str, Any],
        part: Path,
        shifts: Shifts,
    ) -> Path:
        """Its path below the root of its kind. The name is written down first: a crash makes no second copy."""
        root, file = self._roots[kind], _file(stored)
        folder = _inside(root, _subfolder(entry, record.id))
        name = entry["filename"].replace("\\", "/").rpartition("/")[2] or file
        with self._lock:
            if (before := record.names.get(file)) and _same(root / before, stored):
                part.replace(root / before)
                return Path(before)
            while True:
                place = folder.relative_to(root) / _free(folder, name, root, shifts)
                record.names[file] = str(place)
                self._keep(record)
                try:
                    os.close(os.open(root / place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                except FileExistsError:
                    shifts.clear()  # somebody else writes here, too
                    continue
                part.replace(root / place)
                return place


def _free(folder: Path, name: str, root: Path, shifts: Shifts) -> str:
    """The name with the next number of this folder, where it has one; a name without one gets one if it is taken."""
    import folder_paths  # noqa: PLC0415

    found = _NUMBERED.fullmatch(name)
    if found is None:
        if not (folder / name).exists():
            return name
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - both parts of it
        base, number, tail = stem, 1, f"_{suffix}"
    else:
        base, number, tail = found["base"], int(found["number"]), found["tail"]
    if (folder, base) not in shifts or (folder / f"{base}_{number + shifts[folder, base]:05}{tail}").exists():
        # ComfyUI's own search for the next number, in whichever way this version does it.
        prefix = str(folder.relative_to(root) / base)
        shifts[folder, base] = folder_paths.get_save_image_path(prefix, str(root))[2] - number
    return f"{base}_{number + shifts[folder, base]:05}{tail}"


def _subfolder(entry: Entry, job: str) -> str:
    """Without the folder that the worker gives each job."""
    found = str(entry.get("subfolder") or "").replace("\\", "/").strip("/")
    return found[len(job) :].strip("/") if found == job or found.startswith(f"{job}/") else found


def _inside(root: Path, subfolder: str) -> Path:
    """A folder below the root, whatever a worker calls it."""
    parts = [part for part in subfolder.split("/") if part not in ("", ".", "..") and "\0" not in part]
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{subfolder} leads out of {root}")
    return folder


def _same(path: Path, stored: Mapping[str, Any]) -> bool:
    """Whether this file is that output, or the empty one that was to become it when this process was killed."""
    try:
        size = path.stat().st_size
        if not size:
            return True
        if size != stored["size"]:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError:
        return False
    return bool(digest.hexdigest() == stored["sha256"])


def _file(stored: Mapping[str, Any]) -> str:
    """`{node}_{n}.ext`, the last part of its key."""
    return str(stored["key"]).rpartition("/")[2]


def _stored(stored: list[Mapping[str, Any]], node: str, entry: Entry) -> Mapping[str, Any] | None:
    """The output that is this one, taken from the list: of two with one name, each its own."""
    for number, output in enumerate(stored):
        if str(output.get("node")) == node and output.get("name") == entry["filename"]:
            return stored.pop(number)
    return None


def _guessed(stored: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What ComfyUI's history would say, for a job of which only the files are known."""
    shown: dict[str, Any] = {}
    for output in stored:
        kind = "audio" if str(output.get("media_type", "")).startswith("audio/") else "images"
        entry = {"filename": output["name"], "subfolder": "", "type": "output"}
        shown.setdefault(str(output["node"]), {}).setdefault(kind, []).append(entry)
    return shown
