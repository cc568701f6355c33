"""What lies in the folder of the models, against lists: by size, or read from end to end."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfywork.models import crew, folder, record
from comfywork.models.errors import StoppedError
from comfywork.models.folder import Found, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from comfywork.models.modellist import ModelFile
    from comfywork.models.pull import Board


@dataclass(frozen=True, kw_only=True)
class Verdict:
    file: ModelFile
    found: Found
    sha256: str | None = None
    """What was read, where it was read."""


@dataclass(frozen=True, kw_only=True)
class Verifier:
    models: Path
    board: Board
    parallel: int = 2
    stop: threading.Event = field(default_factory=threading.Event)

    def quick(self, files: Sequence[ModelFile]) -> list[Verdict]:
        """By size, and by what earlier pulls recorded."""
        records = record.read(self.models)
        return [
            Verdict(file=file, found=folder.look(self.models, file, records.get(file.path))) for file in files
        ]

    def full(self, files: Sequence[ModelFile]) -> list[Verdict]:
        """Read from end to end. StoppedError when stopped."""
        records = record.read(self.models)

        def work(file: ModelFile) -> Verdict:
            path = self.models / file.path
            meter = self.board.meter(file.path, path.stat().st_size if path.is_file() else None)

            def read(count: int) -> None:
                meter.hashed(count)
                if self.stop.is_set():
                    raise StoppedError("stopped")

            found, digest = folder.prove(self.models, file, records.get(file.path), read)
            return Verdict(file=file, found=found, sha256=digest)

        verdicts = crew.each(list(files), work, parallel=self.parallel, stop=self.stop)
        if self.stop.is_set():
            raise StoppedError("stopped")
        order = {file.path: i for i, file in enumerate(files)}
        return sorted(verdicts, key=lambda verdict: order[verdict.file.path])


def bad(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What is not as it should be; a file that is not here, or not whole, among them."""
    return [v for v in verdicts if v.found.wrong or v.found.kind in (Kind.MISSING, Kind.PARTIAL)]
