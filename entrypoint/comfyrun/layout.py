"""Where things lie in the image. A value, so that tests can lay them elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    python: Path = Path("/opt/venv/bin/python")
    code: Path = Path("/opt/comfyui")
    etc: Path = Path("/etc/comfyrun")
    hook: Path = Path("/opt/comfyrun/comfyrun/hook")
    """What every Python of ComfyUI's imports at its start."""
    wheels: Path = Path("/usr/share/python-wheels")
    """Where Debian's python3-venv keeps pip."""

    work_python: Path = Path("/opt/work/bin/python")
    """Of the queue's own venv; older images have none."""
    work: Path = Path("/opt/comfyrun/bin/comfywork")

    @property
    def work_command(self) -> tuple[str, ...]:
        """What a verb of the queue is put behind. -u: -I leaves PYTHONUNBUFFERED out, and its log is for reading."""
        return (str(self.work_python), "-IBu", str(self.work))

    @property
    def venv(self) -> Path:
        return self.python.parent.parent

    @property
    def main(self) -> Path:
        return self.code / "main.py"

    @property
    def profile(self) -> Path:
        return self.etc / "profile.json"

    @property
    def flags(self) -> Path:
        return self.etc / "flags.json"

    @property
    def extra_model_paths(self) -> Path:
        return self.etc / "extra_model_paths.yaml"
