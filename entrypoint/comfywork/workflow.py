"""What may be submitted: a workflow in ComfyUI's API format. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from comfywork import quantities
from comfywork.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

Workflow = dict[str, Any]
"""node id → {"class_type": …, "inputs": {name: value or [node id, output]}}"""

_MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".gguf", ".bin", ".onnx")
_LINK = 2  # [node id, output]
_SHOWN = 5


def checked(found: object, limit: int) -> Workflow:
    """The workflow itself, out of its wrapper where it has one. ConfigError says what it is instead."""
    if not isinstance(found, dict):
        raise ConfigError(f"a workflow is a JSON object, and this is {_kind(found)}")
    if set(found) >= {"nodes", "links"}:
        raise ConfigError(
            "this workflow is in the format of ComfyUI's editor, which only the editor can run",
            hint="in ComfyUI: Workflow → Export (API), and submit that file",
        )
    inner = found.get("prompt")
    workflow = inner if isinstance(inner, dict) and "class_type" not in inner else found
    if not workflow:
        raise ConfigError("this workflow has no nodes")
    mistakes = [text for node, value in workflow.items() for text in _node(str(node), value, workflow)]
    if mistakes:
        more = len(mistakes) - _SHOWN
        raise ConfigError(*mistakes[:_SHOWN], *([f"and {more} more"] if more > 0 else []))
    size = len(encoded(workflow))
    if size > limit:
        raise ConfigError(
            f"this workflow has {quantities.human(size)}, and {quantities.human(limit)} is the limit",
            hint="pictures belong into the job's inputs (--input NAME=FILE); QUEUE_MAX_WORKFLOW raises the limit",
        )
    return workflow


def encoded(workflow: Workflow) -> bytes:
    """The same bytes for the same workflow."""
    try:
        return json.dumps(workflow, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ConfigError(
            "a number in this workflow is no number (NaN or infinite), or it nests without end"
        ) from None
    except TypeError as error:
        raise ConfigError(f"this workflow is not JSON: {error}") from None


def models(workflow: Workflow) -> tuple[str, ...]:
    """The model files that it names."""
    found = {
        value
        for node in workflow.values()
        for value in node["inputs"].values()
        if isinstance(value, str) and value.lower().endswith(_MODEL_FILES)
    }
    return tuple(sorted(found))


def with_files(workflow: Workflow, places: Mapping[str, str]) -> Workflow:
    """Every input that is exactly one of these names gets the file's place in ComfyUI's input folder."""
    return {
        node: {
            **value,
            "inputs": {
                name: places.get(given, given) if isinstance(given, str) else given
                for name, given in value["inputs"].items()
            },
        }
        for node, value in workflow.items()
    }


def texts(workflow: Workflow) -> set[str]:
    """Every text that stands as an input: where a file's name has to be."""
    return {
        given for node in workflow.values() for given in node["inputs"].values() if isinstance(given, str)
    }


def _node(name: str, value: object, workflow: Mapping[str, object]) -> list[str]:
    if not isinstance(value, dict):
        return [f"node {name} is {_kind(value)}, not an object with class_type and inputs"]
    if not isinstance(value.get("class_type"), str):
        return [f"node {name} has no class_type{nearest('class_type', [str(key) for key in value])}"]
    inputs = value.get("inputs")
    if not isinstance(inputs, dict):
        return [f"node {name} ({value['class_type']}) has no inputs"]
    return [
        f"node {name} ({value['class_type']}): {key} comes from node {given[0]}, which there is not"
        f"{nearest(str(given[0]), workflow)}"
        for key, given in inputs.items()
        if isinstance(given, list)
        and len(given) == _LINK
        and isinstance(given[0], str)
        and isinstance(given[1], int)
        and given[0] not in workflow
    ]


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "something else")
