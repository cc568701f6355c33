"""The oldest version of each program that the tool works with, as data."""

from __future__ import annotations

import re

Version = tuple[int, ...]

MINIMUM: dict[str, Version] = {
    # First with the containerd image store behind a plain daemon.json feature. 26.1.5 was run, on
    # Debian 12 and 13; Debian 12's own 20.10 was tried and refused: no named contexts, and
    # `docker import` records the wrong architecture. 24 and 25 were not run.
    "docker": (24, 0),
    # 0.13.1 (Debian 13) was run for everything here: bake with named contexts, oci-layout://
    # contexts, several platforms. Nothing older was tried.
    "buildx": (0, 13),
    # First with `include:`. 2.26.1 (Debian 13) was run; 1.x is another program with another syntax.
    "compose": (2, 20),
    # Debian 12's 4.3.1 was run: named contexts and cache mounts work, `COPY --link` does not parse.
    "podman": (4, 3),
    # 7.2 (Debian 12) hangs for ever in `import torch` of an arm64 wheel; 10.0 (Debian 13) does not.
    # 8 and 9 were not tried.
    "qemu": (10, 0),
    # The driver branch that CUDA 13.0 came with; an older one refuses a CUDA 13 runtime.
    "nvidia": (580,),
}

FIRST = re.compile(r"(?:^|[\s:v])(\d+(?:\.\d+)+|\d+$)")


def parse(text: str) -> Version | None:
    """The first version in what a program or a package list says (epoch and suffix dropped), or None."""
    found = FIRST.search(text.strip())
    return tuple(int(part) for part in found.group(1).split(".")) if found else None


def enough(program: str, text: str | None) -> bool:
    """Whether the version in `text` is at least the minimum; False when there is none in it."""
    version = parse(text or "")
    return version is not None and version >= MINIMUM[program]


def spelled(program: str) -> str:
    """The minimum as a person writes it."""
    return ".".join(str(part) for part in MINIMUM[program])
