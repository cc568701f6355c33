"""The original node's class ids, so that its saved workflows load here when it is not installed.

ComfyUI fills one dictionary, in the order of the folders, and the last one wins. So ours are left out when the
original is already there; and when it comes later it overwrites them. In both orders the original keeps its ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def missing(wanted: Mapping[str, type[Any]], registered: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """Of the aliases those that no other package has registered yet; ours again when this is a reload."""
    return {
        name: node
        for name, node in wanted.items()
        if name not in registered or getattr(registered[name], "DGLS_ALIAS", False)
    }


def registered() -> Mapping[str, type[Any]]:
    """ComfyUI's nodes so far; none where there is no ComfyUI (tests, a linter)."""
    try:
        import nodes  # noqa: PLC0415
    except ImportError:
        return {}
    found: Mapping[str, type[Any]] = getattr(nodes, "NODE_CLASS_MAPPINGS", {})
    return found


def server() -> Any:
    """ComfyUI's server while it starts; None where there is none (a script, tests)."""
    try:
        from server import PromptServer  # noqa: PLC0415
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)
