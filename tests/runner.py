"""pytest in a container: an image has none, and this environment's copy serves the image's Python."""

from __future__ import annotations

import shutil
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
"""Installed by hash, and pure Python."""


def copy_packages(names: Iterable[str], folder: Path) -> None:
    """The installed files of distributions, as a folder for PYTHONPATH."""
    for name in names:
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)


def locked_down(runner: Path, settings: Mapping[str, str]) -> list[str]:
    """Options of `run` with which the tests run: no network, nothing writable but /tmp, no rights; and `runner`."""
    words = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec,mode=1777"]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--volume", f"{runner}:/runner:ro"]
    everywhere = {"PYTHONPATH": "/runner", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"}
    for name, value in {**everywhere, **settings}.items():
        words += ["--env", f"{name}={value}"]
    return words


def pytest_words(image: str) -> list[str]:
    """What comes after the options: pytest as the image's own Python runs it, on what lies under /t."""
    words = ["--entrypoint", "python", image, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", "/t"]
    return [*words, "-q", "-ra"]
