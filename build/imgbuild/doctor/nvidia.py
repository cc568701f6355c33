"""Can containers use an NVIDIA GPU here? Building never needs one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, info, ok, warning
from imgbuild.doctor.probe import TIMED_OUT

if TYPE_CHECKING:
    from imgbuild.doctor.situation import Situation

QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))


@dataclass(frozen=True)
class Nvidia:
    id: str = "nvidia"

    def __call__(self, s: Situation) -> list[Finding]:
        if not s.probe.which("nvidia-smi"):
            return [info(self.id, "no NVIDIA driver: images are built here, and run with --cpu or elsewhere")]
        asked = s.probe.run(*QUERY, timeout=20)
        rows = [row for row in asked.stdout.splitlines() if "," in row]
        if asked.returncode or not rows:
            why = (
                "did not end within 20 s"
                if asked.returncode == TIMED_OUT
                else _first(asked.stdout + asked.stderr)
            )
            return [
                warning(
                    self.id,
                    f"nvidia-smi finds no GPU: {why}",
                    "nvidia-smi   # and the kernel's log: dmesg | grep -i nvrm",
                )
            ]
        return [*_drivers(self.id, rows), *_toolkit(self.id, s)]


def _drivers(check: str, rows: list[str]) -> list[Finding]:
    found = []
    for row in dict.fromkeys(rows):
        name, _, driver = (part.strip() for part in row.rpartition(","))
        if minimum.enough("nvidia", driver):
            found.append(ok(check, f"{name}, driver {driver}"))
        else:
            found.append(
                warning(
                    check,
                    f"{name}: driver {driver} is older than {minimum.spelled('nvidia')}, which CUDA 13.0 needs",
                    f"install the driver {minimum.spelled('nvidia')} or newer of your distribution or NVIDIA's",
                )
            )
    return found


def _toolkit(check: str, s: Situation) -> list[Finding]:
    if not s.probe.which("nvidia-ctk"):
        return [
            warning(
                check,
                "nvidia-container-toolkit is missing: containers cannot see the GPU",
                "install the package nvidia-container-toolkit of NVIDIA's repository",
                "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
            )
        ]
    version = _first(s.probe.run("nvidia-ctk", "--version").stdout)
    if s.docker.server is None:
        return [info(check, f"{version}; whether Docker uses it cannot be seen while the engine is silent")]
    by_cdi = any(name.startswith("nvidia") for folder in CDI_FOLDERS for name in s.probe.listing(folder))
    if "nvidia" in (s.docker.info.get("Runtimes") or {}) or by_cdi:
        return [ok(check, f"{version}, known to Docker")]
    return [
        warning(
            check,
            f"{version} is installed, but Docker does not know it",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
        )
    ]


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it says nothing")
