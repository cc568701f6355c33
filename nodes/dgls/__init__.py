"""DGLS, the loader that keeps a model's next blocks on the GPU and the rest in host memory.

This is its room: the package is baked into every image at /opt/nodes/dgls and found by ComfyUI through
extra_model_paths.yaml. The nodes themselves come with the DGLS issue; until then it registers none, which
both ComfyUI 0.3.75 and 0.33 load without a word.
"""

from __future__ import annotations

from typing import Any

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
