"""A machine made of recorded replies: `recordings/NAME.json`, changed as a test likes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyrun.preflight.system import Asked, Space, System

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORDINGS = Path(__file__).parent / "recordings"
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.json"))
GIB = 1 << 30


@dataclass
class Recorded:
    """All is well beside the GPU, until a test says otherwise; `system` is what preflight sees of it."""

    programs: dict[str, Any]
    files: dict[str, str]
    devices: list[str]
    folders: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"/sys/class/net": ("eth0", "lo"), "/sys/class/net/eth0": ("address",)}
    )
    spaces: dict[str, Space] = field(
        default_factory=lambda: {"/dev/shm": Space(total=16 * GIB, free=16 * GIB)}
    )
    unwritable: dict[str, OSError] = field(default_factory=dict)
    exec_allowed: bool | None = True
    locked: int | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)
    environs: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The programs that were asked, in order."""
        return [program(argv) for argv in self.asked]

    @property
    def system(self) -> System:
        return System(
            run=self.run,
            read=self.files.get,
            names=self.listing,
            exists=lambda path: bool(self.listing(path)) or path in self.files,
            folder=lambda path: path not in self.files,
            space=lambda path: self.spaces.get(path, Space(total=500 * GIB, free=200 * GIB)),
            writable=self.unwritable.get,
            executable=lambda _: self.exec_allowed,
            memlock=lambda: self.locked,
        )

    def run(self, *argv: str, environ: Mapping[str, str], timeout: float) -> Asked:
        self.asked.append(argv)
        self.environs.append(environ)
        reply = self.programs.get(program(argv), {"absent": "No such file or directory"})
        if "absent" in reply:
            return Asked(outcome="absent", stderr=reply["absent"])
        if "hangs" in reply:
            return Asked(outcome="late", seconds=timeout)
        return Asked(
            outcome="ended",
            returncode=reply.get("returncode", 0),
            stdout=reply.get("stdout", ""),
            stderr=reply.get("stderr", ""),
            seconds=reply.get("seconds", 0.05),
        )

    def listing(self, path: str) -> tuple[str, ...]:
        if path == "/dev":
            return tuple(sorted({"null", "shm", "zero", *self.devices}))
        if path in self.folders:
            return self.folders[path]
        inside = [name.removeprefix(f"{path}/") for name in self.files if name.startswith(f"{path}/")]
        return tuple(sorted({name.partition("/")[0] for name in inside}))


def program(argv: tuple[str, ...]) -> str:
    if argv[0] == "nvidia-smi":
        kinds = {"-L": "list", "--query-gpu": "gpus", "--query-compute-apps": "holders"}
        return f"nvidia-smi {kinds[argv[1].partition('=')[0]]}"
    if "imgbuild_probe" in argv:
        return "probe"
    script = next(Path(word).stem for word in argv if word.endswith(".py"))
    if script == "attention":
        return "attention " + next(w.partition("=")[2] for w in argv if w.startswith("--attention="))
    return script


def recorded(name: str, **programs: Any) -> Recorded:
    """The machine of that name; `programs` are replies instead of the recorded ones."""
    found = json.loads((RECORDINGS / f"{name}.json").read_text())
    return Recorded(
        programs={**found["programs"], **programs}, files=dict(found["files"]), devices=list(found["devices"])
    )


def says(value: Any) -> dict[str, str]:
    return {"stdout": json.dumps(value)}
