"""Where custom nodes and their packages lie, what fits them, and how ComfyUI's Python finds them after the image's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from comfyrun.layout import Layout

PACKAGES = "COMFYRUN_PACKAGES"
VENV = "COMFYRUN_VENV"
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"

RECORD = ".comfyrun.json"
"""In the folder of a node that comfyrun looks after."""

REQUIREMENTS = ("requirements.txt", "pyproject.toml")
"""Where a node says what it needs."""


def folder(data: str, torch: str) -> str:
    """For this torch. Below it is one folder for each kind of Python, so that images may share a volume."""
    return f"{data}/python/torch-{torch}"


def machine() -> str:
    """This kind of Python; hook/sitecustomize.py spells it the same."""
    return f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"


def variables(
    layout: Layout, data: str, torch: str, environ: Mapping[str, str], *, nodes: bool
) -> Iterator[tuple[str, str]]:
    """Name and value of what ComfyUI's environment needs; `environ` is what it would be without."""
    given = environ.get("PYTHONPATH")
    yield "PYTHONPATH", f"{layout.hook}{os.pathsep}{given}" if given else str(layout.hook)
    if nodes:
        yield PACKAGES, folder(data, torch)
        yield VENV, str(layout.venv)
    if environ.get(NO_BYTECODE):
        # The image sets it for its own code, which is compiled already; nodes would be compiled at every start.
        yield NO_BYTECODE, ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where nodes and packages of one image lie."""

    layout: Layout
    data: str
    cache: str
    torch: str
    environ: Mapping[str, str] = field(default_factory=dict)
    baked: tuple[str, ...] = ()
    """Names of the nodes in the image."""

    @property
    def nodes(self) -> Path:
        return Path(self.data, "custom_nodes")

    @property
    def overlay(self) -> Path:
        return Path(folder(self.data, self.torch), machine())

    @property
    def site(self) -> Path:
        return self.overlay / "site-packages"

    def others(self) -> list[Path]:
        """The packages of other images on this volume."""
        found = Path(self.data, "python").glob("torch-*/cp*")
        return sorted(p for p in found if p != self.overlay)

    def folders(self) -> list[Path]:
        """Of custom nodes."""
        with contextlib.suppress(OSError):
            return sorted(p for p in self.nodes.iterdir() if p.name != "__pycache__" and paths.is_dir(p))
        return []

    def record(self) -> dict[str, object]:
        """What the packages were installed for; empty when there are none."""
        return _object(self.overlay / "overlay.json") or {}


def node_record(path: Path) -> dict[str, object] | None:
    """What comfyrun noted about the node in this folder; None when it does not look after it."""
    return _object(path / RECORD)


def _object(path: Path) -> dict[str, object] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return None


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    version: str


def normal(name: str) -> str:
    """As the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def baked(layout: Layout) -> dict[str, str]:
    """What is installed in the image: version by normal name."""
    return {
        p.name: p.version for site in layout.venv.glob("lib/python3*/site-packages") for p in installed(site)
    }


def installed(site: Path) -> list[Package]:
    """By their folders of metadata, which is how pip itself finds them."""
    found = []
    for path in sorted(site.glob("*.dist-info")):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found.append(Package(name=normal(name), version=version))
    return found


def note(place: Place) -> str:
    """What a start has to say about the packages; nothing when they fit."""
    asking = [p for p in place.folders() if any(paths.is_file(p / name) for name in REQUIREMENTS)]
    if all(node_record(path) is None for path in asking):
        return ""
    record = place.record()
    if not record:
        others = ", ".join(f"{p.parent.name}/{p.name}" for p in place.others())
        if not others:
            return ""
        return (
            f"the packages of your custom nodes were installed for another image ({others}), and this one has torch "
            f"{place.torch} and {machine()}: comfyrun nodes sync installs them for this one"
        )
    if record.get("image") != baked(place.layout):
        return (
            "the packages of your custom nodes were chosen to fit another image's: comfyrun nodes sync looks whether "
            "they fit this one's"
        )
    return ""
