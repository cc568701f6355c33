"""DGLS, the loader that keeps a model's next blocks on the GPU and the rest in host memory.

The package is baked into every image at /opt/nodes/dgls and found by ComfyUI through extra_model_paths.yaml; it
is an ordinary custom node as well. `engine` is plain torch and does the work; the rest is ComfyUI's side of it.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]


def _register() -> None:
    from . import aliases, loader, nodes, prompts  # noqa: PLC0415  # these need ComfyUI

    NODE_CLASS_MAPPINGS.update(nodes.NODES)
    NODE_DISPLAY_NAME_MAPPINGS.update(nodes.DISPLAY_NAMES)
    NODE_CLASS_MAPPINGS.update(aliases.missing(nodes.ALIASES, aliases.registered()))
    server = aliases.server()
    if server is not None:
        server.add_on_prompt_handler(
            functools.partial(
                prompts.annotate, loaders=nodes.LOADERS, swappers=nodes.SWAPPERS, path_of=loader.path_of
            )
        )


# Without ComfyUI the package is still there for its engine: tests, benchmarks, a linter.
if importlib.util.find_spec("comfy") is not None:
    _register()
