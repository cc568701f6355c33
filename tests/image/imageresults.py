"""What the tests found, as one value that a report is made from."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RINGS = ("ring1", "ring2", "ring3", "faults")


@dataclass
class ImageResults:
    """Collected while pytest runs; written once, at its end."""

    begun: float = field(default_factory=time.time)
    subject: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Seconds, counts and tables that tests measured: shown beside what was proven."""
    pictures: list[dict[str, str]] = field(default_factory=list)
    _tests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def picture(self, name: str, data: bytes, says: str) -> None:
        self.pictures.append({"name": name, "png": base64.b64encode(data).decode(), "says": says})

    def add(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """One phase of one test; a test that fails before or after its call has failed."""
        row = self._tests.setdefault(
            report.nodeid,
            {
                "id": report.nodeid.rpartition("/")[2],
                "name": item.name,
                "ring": next((r for r in RINGS if item.get_closest_marker(r)), "other"),
                "proves": _proves(item),
                "outcome": "passed",
                "seconds": 0.0,
                "reason": "",
                "figures": {},
            },
        )
        row["seconds"] = round(row["seconds"] + report.duration, 3)
        row["figures"].update(dict(report.user_properties))
        if report.failed:
            row["outcome"] = "failed"
            row["reason"] = str(report.longreprtext)[-6000:]
        elif report.skipped and row["outcome"] == "passed":
            row["outcome"] = "skipped"
            row["reason"] = _skip_reason(report)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.begun)),
            "seconds": round(time.time() - self.begun, 1),
            "subject": self.subject,
            "facts": self.facts,
            "tests": list(self._tests.values()),
            "pictures": self.pictures,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")


def _proves(item: pytest.Item) -> str:
    """A test's first line of documentation, else its name as words."""
    doc = getattr(getattr(item, "function", None), "__doc__", None)
    if doc:
        return str(doc).strip().splitlines()[0]
    name = getattr(item, "originalname", None) or item.name
    words = str(name).removeprefix("test_").replace("_", " ")
    return words[:1].upper() + words[1:]


def _skip_reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
