"""Tells the swapping loader how many layers its model has, before the prompt is validated.

VALIDATE_INPUTS sees an input's value or nothing where there is a link, so it cannot know the model. ComfyUI
lets a package look at each prompt as it comes in; here the file that the prompt names is asked (the header of a
safetensors file, some milliseconds) and the number written beside `gpu_layer_indices`. A wrong index is then one
of the prompt's node_errors and not a failure after minutes of loading.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .families import count_in_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COUNT = "layer_count"
HEADER_LIMIT = 100 << 20
LOG = logging.getLogger("dgls")


def annotate(
    request: dict[str, Any], loaders: frozenset[str], swappers: frozenset[str], path_of: Callable[[str], str]
) -> dict[str, Any]:
    """The request, with the number of layers in each swapping loader whose model's file could be asked."""
    prompt = request.get("prompt")
    if not isinstance(prompt, dict):
        return request
    for node in prompt.values():
        if not isinstance(node, dict) or node.get("class_type") not in swappers:
            continue
        inputs = node.get("inputs")
        if isinstance(inputs, dict):
            inputs.pop(COUNT, None)
            if str(inputs.get("gpu_layer_indices") or "").strip():
                count = _count(prompt, node, loaders, path_of)
                if count is not None:
                    inputs[COUNT] = count
    return request


def _count(
    prompt: Mapping[str, Any],
    node: Mapping[str, Any],
    loaders: frozenset[str],
    path_of: Callable[[str], str],
) -> int | None:
    # From the swapping loader up through whatever hands a model on (LoRA loaders), no further than there are nodes.
    for _ in range(len(prompt)):
        link = node["inputs"].get("layers") or node["inputs"].get("model")
        above = prompt.get(str(link[0])) if isinstance(link, list) and link else None
        if not isinstance(above, dict) or not isinstance(above.get("inputs"), dict):
            return None
        if above.get("class_type") in loaders:
            name = above["inputs"].get("model_name") or above["inputs"].get("unet_name")
            return in_file(path_of(name)) if isinstance(name, str) else None
        node = above
    return None


def in_file(path: str) -> int | None:
    """How many layers the model in this file has, by its header alone."""
    if not path.lower().endswith((".safetensors", ".sft")):
        return None
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= HEADER_LIMIT else {}
    except (OSError, ValueError):
        return None  # loading it will say what is wrong with it
    return count_in_file(header)
