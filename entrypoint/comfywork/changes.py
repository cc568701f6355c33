"""`--set NODE.INPUT=VALUE`: a workflow with some inputs changed. Pure."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from comfywork import workflow
from comfywork.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable


def changed(found: object, changes: Iterable[str]) -> workflow.Workflow:
    """`found` without its wrapper, and with every change. ConfigError names what there is not, and the nearest."""
    graph = workflow.checked(found, 1 << 62)
    if not changes:
        return graph
    graph = copy.deepcopy(graph)
    for change in changes:
        _change(graph, change)
    return graph


def _change(graph: workflow.Workflow, change: str) -> None:
    place, equals, text = change.partition("=")
    name, dot, wanted = place.rpartition(".")
    if not equals or not dot or not name or not wanted:
        raise ConfigError(f"--set {change}: NODE.INPUT=VALUE, such as 3.seed=42")
    node = _node(graph, name, change)
    inputs = graph[node]["inputs"]
    if wanted not in inputs:
        raise ConfigError(
            f"--set {change}: node {node} ({graph[node]['class_type']}) has no input {wanted!r}"
            f"{nearest(wanted, inputs)}",
            hint=f"it has {', '.join(sorted(inputs)) or 'none'}",
        )
    inputs[wanted] = _value(inputs[wanted], text)


def _node(graph: workflow.Workflow, name: str, change: str) -> str:
    """A node by its id, or by a title that only one has."""
    if name in graph:
        return name
    titled = [node for node, value in graph.items() if _title(value) == name]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise ConfigError(f"--set {change}: {len(titled)} nodes are called {name!r}: {', '.join(titled)}")
    titles = [title for value in graph.values() if (title := _title(value))]
    raise ConfigError(f"--set {change}: there is no node {name!r}{nearest(name, [*graph, *titles])}")


def _title(node: dict[str, Any]) -> str:
    meta = node.get("_meta")
    return str(meta.get("title", "")) if isinstance(meta, dict) else ""


def _value(before: object, text: str) -> object:
    """What was a text stays one; everything else is JSON where it can be."""
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
