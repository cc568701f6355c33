"""What was proven before of the same image, by the same tests, with the same code: it need not be proven again.

A proof's key is a hash of everything that could change the outcome and is at hand: the image's digest, the engine's
version, and every file of the tool, of what images are made from, and of the tests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "build"))

from imgbuild.project import cache_dir  # noqa: E402

_PARTS = (
    "bench",
    "build",
    "compose",
    "entrypoint",
    "images",
    "kernels",
    "nodes",
    "rendered",
    "templates",
    "tests",
)


def key_of(part: str) -> str | None:
    """None where there is no engine or no image: then nothing is proven."""
    image = os.environ.get("IMGBUILD_IMAGE")
    words = ("docker", "image", "inspect", "--format", "{{.Id}}", image or "")
    engine = ("docker", "version", "--format", "{{.Server.Version}}")
    if not image:
        return None
    hashed = hashlib.sha256(f"{part} {sys.version}".encode())
    for argv in (words, engine):
        try:
            done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        hashed.update(done.stdout)
    hashed.update(_files())
    return hashed.hexdigest()


@functools.cache
def _files() -> bytes:
    """One hash of them all, the same for every part."""
    hashed = hashlib.sha256()
    for path in sorted(p for part in _PARTS for p in (ROOT / part).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and "results" not in path.parts:
            hashed.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.digest()


def recall(key: str) -> str | None:
    """When that was proven, and how it ended."""
    found = _read().get(key)
    return f"{found['when']}: {found['said']}" if found else None


def remember(key: str, said: str) -> None:
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read()
    known[key] = {"when": time.strftime("%Y-%m-%d %H:%M:%S"), "said": said}
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(dict(list(known.items())[-20:]), indent=2))
    draft.replace(path)


def _read() -> dict[str, dict[str, str]]:
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file() -> Path:
    return cache_dir(os.environ) / "proofs.json"
