"""A real Redis where no registry can be reached: Debian's, bootstrapped once and kept in the engine."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imgbuild.bases import machine_mirrors

if TYPE_CHECKING:
    from pathlib import Path

REDIS = "imgbuild-test-redis:bookworm"


def redis_image(client: Any, folder: Path) -> str:
    """Its name; made where it is missing (half a minute, 130 MB). /data is the user's that compose/workers.yaml names."""
    if any(REDIS in image.tags for image in client.images.list(name=REDIS.partition(":")[0])):
        return REDIS
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap to make a Redis with: imgbuild doctor --fix")
    sources, tar = folder / "sources.list", folder / "redis.tar"
    sources.write_text("".join(f"{line}\n" for line in machine_mirrors("bookworm")))
    argv = ["mmdebstrap", "--variant=minbase", "--include=redis-server", "bookworm", str(tar)]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    argv += ['--customize-hook=mkdir "$1/data"', '--customize-hook=chown 999:1000 "$1/data"']
    done = subprocess.run(
        [*argv, *([str(sources)] if sources.read_text() else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"Redis cannot be bootstrapped: {done.stderr[-300:]}")
    path = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(["docker", "import", "--change", path, str(tar), REDIS], check=True, capture_output=True)
    tar.unlink()
    return REDIS
