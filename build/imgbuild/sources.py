"""Where ComfyUI comes from: the pinned upstream, a checkout, or the package index's copy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_OF_A_TREE = ("main.py", "server.py", "nodes.py", "comfyui_version.py", "requirements.txt", "comfy/cli_args.py")


def tree_version(tree: Path) -> str:
    """The version of a ComfyUI tree; a ConfigError when the path is none."""
    if not tree.is_dir():
        raise ConfigError(f"--source comfyui={tree}: there is no such folder")
    missing = [name for name in _OF_A_TREE if not (tree / name).is_file()]
    if missing:
        raise ConfigError(
            f"--source comfyui={tree}: not a ComfyUI tree: it has no {', '.join(missing)}",
            hint="name the folder that holds ComfyUI's main.py",
        )
    found = re.search(r'__version__ = "([0-9][0-9a-z.+-]*)"', (tree / "comfyui_version.py").read_text(errors="replace"))
    if found is None:
        raise ConfigError(f"--source comfyui={tree}: comfyui_version.py says no version")
    return found[1]
