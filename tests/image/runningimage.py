"""The container under test, and what was measured while it started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfyclient import ComfyClient


@dataclass(kw_only=True)
class Running:
    container: Any  # docker.models.containers.Container
    client: ComfyClient
    seconds_to_alive: float
    seconds_to_ready: float

    def log(self) -> str:
        text: str = self.container.logs().decode("utf-8", "replace")
        return text

    def run(self, *command: str) -> tuple[int, str]:
        """A command in the container; its exit code and output."""
        code, output = self.container.exec_run(list(command))
        return int(code), output.decode("utf-8", "replace")
