"""What a run measured, as JSON for programs and as lines for people. Standard library only."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pytest

PACKAGES = ("torch", "triton", "sageattention", "flash-attn", "imgbuild-probe")


class Results:
    """Collects the tests' reports; nothing in it names a machine, a user or a folder."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        self.tests: list[dict[str, Any]] = []

    def describe(self, torch: Any) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.machine = {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cuda_of_driver": torch._C._cuda_getDriverVersion(),
            "ptx_jit": os.environ.get("CUDA_DISABLE_PTX_JIT") != "1",
        }

    def add(self, report: pytest.TestReport) -> None:
        """Of a test's three phases: the call, and whatever else fails or is skipped."""
        if report.when == "call" or not report.passed:
            entry: dict[str, Any] = {
                "test": report.nodeid.rpartition("/")[2],
                "outcome": report.outcome,
                "seconds": round(report.duration, 3),
            }
            if report.skipped and isinstance(report.longrepr, tuple):
                entry["reason"] = report.longrepr[2].removeprefix("Skipped: ")
            self.tests.append(entry)
        if report.when == "teardown" and self.tests:
            # The fixture hands its rows over when it ends, so they come with the last phase.
            self.tests[-1] |= {name: value for name, value in report.user_properties if value}

    def rows(self) -> list[dict[str, Any]]:
        return [row for test in self.tests for row in test.get("figures", ())]

    def write(self, path: Path) -> None:
        counts = {o: sum(t["outcome"] == o for t in self.tests) for o in ("passed", "failed", "skipped")}
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "image": os.environ.get("IMGBUILD_IMAGE"),
            "machine": self.machine,
            "packages": dict(filter(None, map(_version, PACKAGES))),
            "counts": counts,
            "tests": self.tests,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")


def worst(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the comparisons of each kernel and type, the worst of each figure."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["dtype"]), []).append(row)
    return [
        {
            "kernel": kernel,
            "dtype": dtype,
            "comparisons": len(found),
            "wrong": sum(r["wrong"] for r in found),
            "max_error": max(r["max_error"] for r in found),
            "share": max(r["share"] for r in found),
            "cosine": min(r["cosine"] for r in found),
        }
        for (kernel, dtype), found in sorted(groups.items())
    ]


def _version(name: str) -> tuple[str, str] | None:
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
