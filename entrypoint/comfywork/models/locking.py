"""A list's revisions, sizes and hashes from the servers' own metadata, written into its file with comments kept."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfywork.errors import ComfyworkError
from comfywork.models import crew, wire, yamlfile
from comfywork.models.errors import PlaceError, StoppedError, UnreachableError, WrongFileError
from comfywork.models.wire import Patience, Told, TransientError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from comfywork.models.hub import Hub
    from comfywork.models.modellist import Loaded, ModelFile

_BRANCH = "main"


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a lock writes for one file; equal values are no change."""

    path: str
    source: str
    revision: str | None = None
    size: int | None = None
    sha256: str | None = None
    was: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    hint: str = ""
    exit_code: int = 0

    @property
    def values(self) -> dict[str, Any]:
        """What differs from the file."""
        now = {"revision": self.revision, "size": self.size, "sha256": self.sha256}
        return {
            name: value for name, value in now.items() if value is not None and value != self.was.get(name)
        }


@dataclass(frozen=True, kw_only=True)
class Locker:
    hub: Hub
    stop: threading.Event
    said: Callable[[str], None]
    fetch: bool = False
    """Read whole files of which no server states the hash."""
    upgrade: str | None = None
    """A branch or tag to take the newest commit of; without it, commits that stand in the list stay."""
    parallel: int = 4
    patience: Patience = field(default_factory=Patience)

    def run(self, files: Sequence[ModelFile]) -> list[Change]:
        """One a file, in order. A failure of one is its `problem`."""
        with wire.client(parallel=self.parallel) as http:

            def work(file: ModelFile) -> Change:
                try:
                    return self._one(http, file)
                except ComfyworkError as error:
                    return Change(
                        path=file.path,
                        source=file.source,
                        problem=str(error),
                        hint=error.hint,
                        exit_code=error.exit_code,
                    )

            found = crew.each(list(files), work, parallel=self.parallel, stop=self.stop)
        if self.stop.is_set():
            raise StoppedError("stopped; nothing was written")
        order = {file.path: i for i, file in enumerate(files)}
        return sorted(found, key=lambda change: order[change.path])

    def _one(self, http: Any, file: ModelFile) -> Change:
        was = {"revision": file.revision, "size": file.size, "sha256": file.sha256}
        revision = None
        if file.repository:
            asked = self.upgrade or file.revision or _BRANCH
            told = self._patient(file, lambda: self.hub.ask(file, asked))
            revision = told.revision
            if revision is None:
                raise WrongFileError("the hub does not say which commit this is")
        else:
            told = self._patient(file, lambda: _head(http, file.url or ""))
        size, sha256 = told.size, told.sha256
        if (
            sha256 is None
            and file.sha256 is not None
            and file.size == size
            and revision in (None, file.revision)
        ):
            sha256 = file.sha256
        if sha256 is None:
            if not self.fetch:
                raise WrongFileError(
                    "the server states no sha256",
                    hint="read the whole file to make one: --fetch; or write what its publisher states into the list",
                )
            url = self.hub.url(file, revision) if file.repository else file.url or ""
            token = self.hub.token if file.repository else None
            size, sha256 = self._patient(file, lambda: self._read(http, url, token))
        return Change(
            path=file.path, source=file.source, revision=revision, size=size, sha256=sha256, was=was
        )

    def _patient(self, file: ModelFile, ask: Callable[[], Any]) -> Any:
        failures = 0
        while True:
            try:
                return ask()
            except TransientError as error:
                failures += 1
                if failures > self.patience.failures:
                    raise UnreachableError(f"{error} ({failures} times)") from error
                pause = self.patience.pause(failures, error.after)
                self.said(f"{file.path}: {error}; again in {pause:.1f} s")
                if self.stop.wait(pause):
                    raise StoppedError("stopped") from None

    def _read(self, http: Any, url: str, token: str | None) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with wire.request(http, "GET", url, {}, token) as (response, told):
            for block in response.iter_raw():
                if self.stop.is_set():
                    raise StoppedError("stopped")
                digest.update(block)
                size += len(block)
        if told.size is not None and told.size != size:
            raise TransientError("the server ended in the middle of the file")
        return size, digest.hexdigest()


def _head(http: Any, url: str) -> Told:
    with wire.request(http, "HEAD", url, {}, None) as (_, told):
        return told


def write(raw: bytes, loaded: Loaded, changes: Sequence[Change]) -> bytes:
    """The list's text with the new values in every place of a file; everything else as it was."""
    by_path = {change.path: change.values for change in changes}
    yaml = yamlfile.loader()
    text = raw.decode("utf-8")
    yaml.indent(**_indent(text))
    node = yaml.load(text)
    for i, model in enumerate(loaded.models):
        for j, file in enumerate(model.files):
            _set(node["models"][i]["files"][j], by_path.get(file.path, {}))
    out = io.BytesIO()
    yaml.dump(node, out)
    return out.getvalue()


def save(target: Path, text: bytes) -> None:
    """Whole or not at all."""
    fresh = target.with_name(f"{target.name}~")
    try:
        with fresh.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    except OSError as error:
        raise PlaceError(
            f"{target}: {error.strerror or error}", hint="write elsewhere: --output FILE"
        ) from None


def _set(node: Any, values: dict[str, Any]) -> None:
    """New keys come before the last one, whose end may hold the comment that follows."""
    for name, value in values.items():
        if name in node:
            node[name] = value
        else:
            node.insert(max(0, len(node) - 1), name, value)


def _indent(text: str) -> dict[str, int]:
    """How the file indents its lists: `- ` below its key, or two further."""
    for line in text.splitlines():
        stripped = line.lstrip(" ")
        if stripped.startswith("- ") and not line.startswith("#"):
            offset = min(len(line) - len(stripped), 4)
            return {"mapping": 2, "sequence": offset + 2, "offset": offset}
    return {"mapping": 2, "sequence": 4, "offset": 2}
