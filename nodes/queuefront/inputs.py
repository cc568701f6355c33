"""The files of this machine that a graph names: they travel with the job."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .port import Port

_KEPT = 600.0  # seconds; far less than any retention
_LONGEST = 1024  # characters of a file's name


class Sent:
    """Files that the storage has already: the next prompt with the same picture does not send it again."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._keys: dict[tuple[Path, int, int], tuple[float, str]] = {}

    async def key(self, path: Path) -> str:
        looked = await asyncio.to_thread(path.stat)
        mark = (path, looked.st_size, looked.st_mtime_ns)
        now = time.monotonic()
        self._keys = {known: value for known, value in self._keys.items() if now - value[0] < _KEPT}
        if mark not in self._keys:
            self._keys[mark] = (now, await self._port.put_input(path.name, path))
        return self._keys[mark][1]

    def forget(self) -> None:
        """The storage has lost one."""
        self._keys.clear()


def files_of(prompt: Mapping[str, Any]) -> dict[str, Path]:
    """Each text of the graph that chooses a file which lies here → that file."""
    return {
        text: path for node in prompt.values() for text in _chosen(node) if (path := _file(text)) is not None
    }


def _chosen(node: Mapping[str, Any]) -> Iterator[str]:
    """Texts that the node's class offers as a choice, or that it lets people upload; never a text that is written."""
    import nodes  # noqa: PLC0415

    cls = nodes.NODE_CLASS_MAPPINGS.get(node.get("class_type"))
    if cls is None:
        return
    types = cls.INPUT_TYPES()
    for name, value in (node.get("inputs") or {}).items():
        if not isinstance(value, str) or len(value) > _LONGEST:
            continue
        spec = next(
            (types[part][name] for part in ("required", "optional") if name in types.get(part, {})), None
        )
        if spec and _chooses(spec):
            yield value


def _chooses(spec: Any) -> bool:
    kind = spec[0]
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return isinstance(kind, list) or kind == "COMBO" or any(key.endswith("_upload") for key in options)


def _file(text: str) -> Path | None:
    import folder_paths  # noqa: PLC0415

    name, folder = folder_paths.annotated_filepath(text)
    if not name or "\0" in name:
        return None
    root = os.path.realpath(folder or folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(root, name))  # noqa: PTH118 - realpath, whose sense Path.resolve shares
    inside = path.startswith(root.rstrip(os.sep) + os.sep)
    return Path(path) if inside and Path(path).is_file() else None
