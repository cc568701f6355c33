"""What was deployed here: a JSON file a deployment, written whole or not at all.

The running container's labels say how to make the next one; the ledger remembers the
image before, which no container holds any more.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from imgbuild.errors import ConfigError, DeploymentError
from imgbuild.locking import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Entry:
    image: str
    """The name the engine was given: a tag of its own for this digest."""
    digest: str
    since: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    engine: str
    current: Entry | None = None
    previous: Entry | None = None


@dataclass(frozen=True)
class Ledger:
    folder: Path

    def path(self, engine: str, name: str) -> Path:
        return self.folder / f"{name}.{engine}.json"

    def label_file(self, engine: str, name: str) -> Path:
        """For `docker run --label-file`."""
        return self.folder / f"{name}.{engine}.labels"

    def read(self, engine: str, name: str) -> Record:
        """Empty where nothing was written. Raises ConfigError for a file that is not ours."""
        path = self.path(engine, name)
        if not path.is_file():
            return Record(name=name, engine=engine)
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            entries = {k: Entry(**data[k]) if data.get(k) else None for k in ("current", "previous")}
            return Record(name=str(data["name"]), engine=str(data["engine"]), **entries)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(
                f"{path} is damaged: {e}", hint=f"delete it: then there is nothing to roll {name} back to"
            ) from None

    @contextmanager
    def alone(self, engine: str, name: str) -> Iterator[None]:
        """One update at a time. Raises DeploymentError while another one runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.{engine}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DeploymentError(f"another update of {name} runs", hint="wait for it") from None
            yield

    def write(self, record: Record) -> None:
        write_atomically(self.path(record.engine, record.name), json.dumps(asdict(record), indent=2) + "\n")


def cache_folder(cache: Path) -> Path:
    return cache / "deployments"
