"""Why a job failed, as the event with which ComfyUI tells a browser of an error. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERED = re.compile(r"#([^'\s]+)'")  # Node ID '#3', for a node that it does not have
_MEANT: Mapping[str, tuple[str, str]] = {
    "invalid": (
        "The worker's ComfyUI refuses this graph, which this one accepts",
        "This front and the workers need the same ComfyUI and the same custom nodes and models.",
    ),
    "execution": ("The job failed on its worker", ""),
    "memory": (
        "The worker ran out of GPU memory",
        "It was tried twice, the second time with every model unloaded; a smaller picture, batch or model may fit.",
    ),
    "timeout": ("The job ran longer than it may", "WORKER_JOB_TIMEOUT is the limit."),
    "comfyui": ("ComfyUI ended on every worker that tried this job", ""),
    "worker": ("Workers ended on this job, and it is not tried again", ""),
    "storage": ("The job was done, and its outputs could not be stored", ""),
    "inputs": (
        "The job's input files could not be read by the worker",
        "Queue it again: they are sent again.",
    ),
}


def failed(failure: Mapping[str, Any], said: Mapping[str, Any], prompt: Mapping[str, Any]) -> dict[str, Any]:
    """`said`: the worker's own event, when a node raised. ComfyUI's words stay as they are then."""
    kind, message = str(failure.get("kind") or "execution"), str(failure.get("message") or "")
    if said and kind in ("execution", "memory"):
        return {name: value for name, value in said.items() if name != "timestamp"}
    meaning, hint = _MEANT.get(kind, ("The job failed", ""))
    node = _refused_node(failure, prompt) if kind == "invalid" else None
    return _event(
        f"{meaning}: {message}" if message else meaning,
        hint,
        f"queue.{kind}",
        node,
        prompt,
        str(failure.get("details") or ""),
    )


def lost(message: str, hint: str = "") -> dict[str, Any]:
    """No node is to blame."""
    return _event(message, hint, "queue.front", None, {}, "")


def _event(
    message: str, hint: str, kind: str, node: str | None, prompt: Mapping[str, Any], details: str
) -> dict[str, Any]:
    named = prompt.get(node) if node is not None else None
    return {
        "node_id": node,
        "node_type": str(named.get("class_type", "")) if isinstance(named, dict) else "",
        "exception_message": f"{message}\n{hint}" if hint else message,
        "exception_type": kind,
        "traceback": details.splitlines(keepends=True),
        "current_inputs": {},
        "current_outputs": [],
    }


def _refused_node(failure: Mapping[str, Any], prompt: Mapping[str, Any]) -> str | None:
    """The first node of ComfyUI's own answer that this graph has."""
    try:
        found = json.loads(str(failure.get("details") or ""))
        error = found.get("error") or {}
        named = [*(found.get("node_errors") or {}), (error.get("extra_info") or {}).get("node_id")]
        named += _NUMBERED.findall(str(error.get("details") or ""))
    except (ValueError, TypeError, AttributeError):
        return None
    return next((str(node) for node in named if node is not None and str(node) in prompt), None)
