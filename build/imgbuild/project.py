"""Where the project's data lies: a checkout, or what the installed wheel carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

CARRIED = Path(__file__).with_name("_project")


@dataclass(frozen=True, kw_only=True)
class Project:
    """The folders the tool reads from; `writable` is False for an installed wheel's own data."""

    root: Path
    writable: bool

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def locks(self) -> Path:
        return self.images / "locks"

    @property
    def requirements(self) -> Path:
        return self.images / "requirements"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def rendered(self) -> Path:
        return self.root / "rendered"

    @property
    def entrypoint(self) -> Path:
        return self.root / "entrypoint"

    @property
    def kernels(self) -> Path:
        return self.root / "kernels"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes"

    @property
    def image_tests(self) -> Path:
        return self.root / "tests" / "image"


def find_project(asked: Path | None, *, cwd: Path) -> Project:
    """`--project DIR`, else the current folder or one above it that has images/, else the wheel's own."""
    if asked is not None:
        if not (asked / "images" / "comfyui.yaml").is_file():
            raise ConfigError(
                f"{asked} is not an imgbuild project: it has no images/comfyui.yaml",
                hint="leave --project out to use the matrix that comes with the tool",
            )
        return _complete(asked.resolve())
    for folder in (cwd, *cwd.parents):
        if (folder / "images" / "comfyui.yaml").is_file():
            return _complete(folder.resolve())
    if (CARRIED / "images" / "comfyui.yaml").is_file():
        return Project(root=CARRIED, writable=False)
    raise ConfigError(
        f"no images/comfyui.yaml in {cwd} or above it",
        hint="cd into a checkout of imgbuild, or name one: imgbuild --project DIR …",
    )


def _complete(root: Path) -> Project:
    return Project(root=root, writable=True)


def cache_dir(env: Mapping[str, str]) -> Path:
    """Where bases, sources, wheels and logs are kept: IMGBUILD_CACHE, else XDG's cache folder."""
    if own := env.get("IMGBUILD_CACHE"):
        return Path(own)
    xdg = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/root")) / ".cache")
    return Path(xdg) / "imgbuild"
