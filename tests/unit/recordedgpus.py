"""Machines as the entrypoint's own tests recorded them, seen through the tool's probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imgbuild.doctor.probe import NOT_FOUND, TIMED_OUT
from imgbuild.hardware import Hardware, look
from imgbuild.proc import Result

RECORDINGS = Path(__file__).parent / "comfyrun" / "recordings"
# The entrypoint asks for two more columns: free memory, and whether a display is attached.
_KEPT = (0, 1, 2, 3, 5, 6)


class Machine:
    """`run` of a probe; `asked` are the programs that were started."""

    def __init__(self, programs: dict[str, Any]) -> None:
        self.programs = programs
        self.asked: list[str] = []

    def run(self, *argv: str, timeout: float = 15, env: Any = None) -> Result:
        name = "nvml"
        if argv[0] == "nvidia-smi":
            name = "nvidia-smi list" if argv[1] == "-L" else "nvidia-smi gpus"
        self.asked.append(name)
        reply = self.programs.get(name, {"absent": "No such file or directory"})
        if "hangs" in reply:
            return Result(returncode=TIMED_OUT, stdout="", stderr="")
        if "absent" in reply:
            if name == "nvml":  # the tool's own Python is always there; what it lacks is the library
                problem = json.dumps({"problem": "NVML Shared Library Not Found"})
                return Result(returncode=0, stdout=problem, stderr="")
            return Result(returncode=NOT_FOUND, stdout="", stderr=reply["absent"])
        text = reply.get("stdout", "")
        if name == "nvidia-smi gpus" and text.count(",") >= 7:
            rows = [line.split(", ") for line in text.splitlines()]
            text = "".join(", ".join(row[i] for i in _KEPT) + "\n" for row in rows)
        return Result(returncode=reply.get("returncode", 0), stdout=text, stderr=reply.get("stderr", ""))


def machine(name: str, **programs: Any) -> Machine:
    """`programs` are replies in place of the recorded ones, with `_` for a space."""
    found = json.loads((RECORDINGS / f"{name}.json").read_text())["programs"]
    return Machine({**found, **{k.replace("_", " "): v for k, v in programs.items()}})


def seen(name: str, **programs: Any) -> Hardware:
    return look(machine(name, **programs).run)
