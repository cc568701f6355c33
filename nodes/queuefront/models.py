"""The model files of the workers, offered and accepted as if they lay here."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LOG = logging.getLogger("queuefront")


class Models:
    """What workers have, by folder. The last answer is kept on disk, for a start while the queue is away."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._folders: dict[str, tuple[str, ...]] = {}
        with suppress(OSError, ValueError, AttributeError, TypeError):  # there is none at the first start
            self._set(json.loads(file.read_text(encoding="utf-8")))

    def _set(self, folders: Mapping[str, list[str]]) -> None:
        found = {str(folder): tuple(map(str, files)) for folder, files in folders.items()}
        with self._lock:
            self._folders = found

    def update(self, folders: Mapping[str, list[str]]) -> None:
        before = self._folders
        self._set(folders)
        if before == self._folders:
            return
        LOG.info("the workers have %d model files", sum(len(files) for files in self._folders.values()))
        try:
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(self._folders), encoding="utf-8")
            new.replace(self._file)
        except OSError as error:
            LOG.warning("%s cannot be written: %s", self._file, error.strerror or error)

    def of(self, folder: str) -> tuple[str, ...]:
        with self._lock:
            return self._folders.get(folder, ())


def install(models: Models) -> None:
    """ComfyUI's lists and its search for a file, with the workers' files in them."""
    import folder_paths  # noqa: PLC0415

    # get_filename_list, which modules import by name, asks this one by its module: so all of them are reached.
    listed, found = folder_paths.cached_filename_list_, folder_paths.get_full_path

    def cached_filename_list_(folder_name: str) -> tuple[list[str], dict[str, float], float]:
        folder = folder_paths.map_legacy(folder_name)
        here = listed(folder)
        if here is None:
            here = folder_paths.get_filename_list_(folder)
            folder_paths.filename_list_cache[folder] = here
        return sorted({*here[0], *models.of(folder)}), here[1], here[2]

    def get_full_path(folder_name: str, filename: str) -> str | None:
        """Where it would lie, for a file that only workers have."""
        path: str | None = found(folder_name, filename)
        if path is not None:
            return path
        folder = folder_paths.map_legacy(folder_name)
        if filename not in models.of(folder):
            return None
        folders = folder_paths.folder_names_and_paths.get(folder, ([], ()))[0]
        return os.path.join(folders[0], filename) if folders else None  # noqa: PTH118 - as ComfyUI spells it

    folder_paths.cached_filename_list_ = cached_filename_list_
    folder_paths.get_full_path = get_full_path
    _install_browser(models)


def _install_browser(models: Models) -> None:
    """The list of the frontend's model library."""
    from app.model_manager import ModelFileManager  # noqa: PLC0415
    from folder_paths import map_legacy  # noqa: PLC0415

    inner = ModelFileManager.get_model_file_list

    def get_model_file_list(self: Any, folder_name: str) -> list[dict[str, Any]]:
        here = list(inner(self, folder_name))
        names = {entry.get("name") for entry in here}
        more = models.of(map_legacy(folder_name))
        return here + [{"name": name, "pathIndex": 0} for name in more if name not in names]

    ModelFileManager.get_model_file_list = get_model_file_list
