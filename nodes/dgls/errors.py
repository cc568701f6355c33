"""What a user of the nodes can mend, one class a kind. The engine has its own, nearer to the metal."""

from __future__ import annotations


class NodeError(RuntimeError):
    """Shown in ComfyUI as it is: what happened, and what would help."""


class NoBlocksError(NodeError):
    """The model has no repeated blocks, so there is nothing to swap."""


class NotCalledError(NodeError):
    """The model never calls its blocks as modules, so nothing can be put in their place."""


class IndicesError(NodeError, ValueError):
    """gpu_layer_indices is no list of layer numbers."""


class LoadError(NodeError):
    """The file is no diffusion model that this ComfyUI knows."""
