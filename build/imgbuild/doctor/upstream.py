"""Does the host of ComfyUI's sources answer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, info, ok, warning

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

SECONDS = 10


@dataclass(frozen=True)
class Upstream:
    id: str = "upstream"

    def __call__(self, s: Situation) -> list[Finding]:
        if s.git_url is None:
            return []
        if s.offline:
            return [info(self.id, "not asked: offline")]
        if not s.probe.which("git"):
            return [info(self.id, "not asked: git is missing")]
        asked = s.probe.run(
            *("git", "ls-remote", "--exit-code", s.git_url, "HEAD"),
            timeout=SECONDS,
            env={"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"},
        )
        if asked.returncode == 0:
            return [ok(self.id, "ComfyUI's git repository answers")]
        return [
            warning(
                self.id,
                f"ComfyUI's git repository ({s.git_url}) cannot be reached",
                "nothing to do: a build then uses ComfyUI 0.3.75 from the package index, and says so",
                "or build from a checkout: imgbuild build --source comfyui=PATH …",
            )
        ]
