"""The files of this machine that a graph names: they travel with the job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LONGEST = 1024  # characters of a file's name


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
