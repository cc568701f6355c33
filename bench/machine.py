"""What a measurement was taken on, without a name or a path of the machine."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def describe() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": f"{os.cpu_count()} × {_field('/proc/cpuinfo', 'model name') or 'unknown'}",
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 1e6:.0f} GB",
        "system": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "docker engine": _said("docker", "version", "--format", "{{.Server.Version}}"),
        "buildx": " ".join(_said("docker", "buildx", "version").split()[1:2]),
    }


def markdown() -> str:
    return "".join(f"- {name}: {value}\n" for name, value in describe().items() if value)


def _field(path: str, name: str, separator: str = ":") -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(separator) for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
