"""A real nginx where no registry can be reached: Debian's, bootstrapped once and kept in the engine."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imgbuild.bases import machine_mirrors

if TYPE_CHECKING:
    from pathlib import Path

NGINX = "imgbuild-test-nginx:bookworm"


def nginx_image(client: Any, folder: Path) -> str:
    """Its name; made where it is missing (half a minute, 140 MB)."""
    if any(NGINX in image.tags for image in client.images.list(name=NGINX.partition(":")[0])):
        return NGINX
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap to make an nginx with: imgbuild doctor --fix")
    sources, tar = folder / "sources.list", folder / "nginx.tar"
    sources.write_text("".join(f"{line}\n" for line in machine_mirrors("bookworm")))
    argv = ["mmdebstrap", "--variant=minbase", "--include=nginx-light", "bookworm", str(tar)]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    done = subprocess.run(
        [*argv, *([str(sources)] if sources.read_text() else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"nginx cannot be bootstrapped: {done.stderr[-300:]}")
    path = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(["docker", "import", "--change", path, str(tar), NGINX], check=True, capture_output=True)
    tar.unlink()
    return NGINX
