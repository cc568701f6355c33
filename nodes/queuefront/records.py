"""What a front must not forget when it is started again: its prompts that have not been delivered."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger("queuefront")

Stage = Literal["new", "queued", "withdrawn"]
"""Perhaps not yet in the queue · in the queue · to be cancelled, and shown to nobody any more."""


@dataclass(kw_only=True)
class Record:
    """One prompt as ComfyUI's queue holds it, without what may not be kept on a disk."""

    number: float
    id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    targets: list[str]
    """Ids of the output nodes to run."""
    stage: Stage = "new"
    names: dict[str, str] = field(default_factory=dict)
    """An output's file in the storage → its path below the output folder, once it was given one."""

    @classmethod
    def of_item(cls, item: tuple[Any, ...]) -> Record:
        number, job, prompt, extra_data, targets = item[:5]
        return cls(number=number, id=job, prompt=prompt, extra_data=extra_data, targets=list(targets))

    @property
    def item(self) -> tuple[Any, ...]:
        """The last part is where ComfyUI keeps secrets, and they are never kept."""
        return (self.number, self.id, self.prompt, self.extra_data, self.targets, {})

    @property
    def client(self) -> str | None:
        found = self.extra_data.get("client_id")
        return found if isinstance(found, str) else None


class Records:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, record: Record) -> None:
        file = self._folder / f"{record.id}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(record)), encoding="utf-8")
        new.replace(file)

    def remove(self, job: str) -> None:
        (self._folder / f"{job}.json").unlink(missing_ok=True)

    def load(self) -> list[Record]:
        """In the order in which they were submitted."""
        found = []
        for file in self._folder.glob("*.json"):
            try:
                found.append(Record(**json.loads(file.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError) as error:
                LOG.warning("%s is no prompt of this front, and is left alone: %s", file, error)
        return sorted(found, key=lambda record: record.extra_data.get("create_time", 0))
