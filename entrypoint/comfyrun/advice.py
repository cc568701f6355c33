"""What documents and forums still recommend and nobody should set: variables that do harm, flags that are gone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Never:
    name: str
    values: str
    """A regular expression: the values that do harm."""
    why: str


_SET = r"(?!0?$).*"

NEVER = (
    Never(
        "CUDA_CACHE_DISABLE", _SET, "what the driver compiles is not kept, and compiled again at every start"
    ),
    Never(
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        _SET,
        "a debug switch: with --disable-cuda-malloc every allocation becomes a call of the driver; without, nothing",
    ),
    Never(
        "CUBLAS_WORKSPACE_CONFIG",
        r"(:0:\d+)+",
        "cuBLAS works without any workspace, a large loss on Hopper",
    ),
    Never("CUDA_LAUNCH_BLOCKING", _SET, "a debug switch: every kernel is waited for"),
    Never("CUDA_DISABLE_PTX_JIT", _SET, "a debug switch: code that is not compiled for this very GPU fails"),
)


# Flags that do not exist (any more), which documents recommend all the same: the nearest name would lead astray.
GONE: Mapping[str, str] = {
    "--cpu-offload": "it never had: models leave the GPU by themselves when it is full; COMFY_MEMORY=low frees it sooner",
    "--dev": "it never had, and starts without it",
    "--disable-ipex-optimize": "leave it out",
    "--normalvram": "it is what ComfyUI does by itself: leave it out",
}


def against(environment: Mapping[str, str]) -> Iterator[Never]:
    """What is in `environment` and does harm."""
    for never in NEVER:
        if re.fullmatch(never.values, environment.get(never.name, ""), re.DOTALL):
            yield never
