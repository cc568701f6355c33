"""Queue Prompt goes into the queue: ComfyUI's own frontend, executed by workers elsewhere.

Baked into every image and inactive there. COMFY_QUEUE_FRONT=1 (`comfyrun front`) makes this ComfyUI a front: it
validates, shows and stores, and executes nothing. COMFY_QUEUE_WORKER=1 (`comfyrun worker`) makes what a worker
writes into its pictures the graph that was submitted. With neither, nothing more than this file is imported.
"""

from __future__ import annotations

import os
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {}

__all__ = ["NODE_CLASS_MAPPINGS"]

if os.environ.get("COMFY_QUEUE_FRONT") == "1":
    from . import front

    front.begin(os.environ)
elif os.environ.get("COMFY_QUEUE_WORKER") == "1":
    from . import embed

    embed.install()
