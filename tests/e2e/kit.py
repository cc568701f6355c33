"""What the tests against a real engine have in common."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))  # how layers are read is written once

from imagelayers import LayeredImage, layered_image  # noqa: E402
from scratch import tool_argv, tool_env  # noqa: E402

from imgbuild.matrix import load_matrix  # noqa: E402

if TYPE_CHECKING:
    from imgbuild.project import Project

IMAGE = "imgbuild-e2e"
TARGET = "cpu"
REFERENCE = f"{IMAGE}:{TARGET}"
GUARDED = f"{IMAGE}-guarded:{TARGET}"


@dataclass(frozen=True, kw_only=True)
class Built:
    image: LayeredImage
    identity: str
    """What the tag points to."""


def look(client: Any, project: Project, reference: str = REFERENCE) -> Built:
    image = layered_image(client, reference, project, load_matrix(project.images))
    return Built(image=image, identity=client.images.get(reference).id)


def imgbuild(
    project: Project, *words: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`imgbuild --project … WORDS` as a process of its own."""
    return subprocess.run(
        tool_argv("--project", project.root, *words),
        env=tool_env(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


def run_python(client: Any, reference: str, code: str) -> str:
    """What Python code prints in a container; its anonymous volumes go with it, which `run(remove=True)` forgets."""
    container = client.containers.create(reference, ["-c", code], entrypoint="python")
    try:
        container.start()
        status = container.wait(timeout=120)["StatusCode"]
        text: str = container.logs().decode()
    finally:
        container.remove(force=True, v=True)
    assert status == 0, text
    return text.strip()


def wait_for(what: Any, seconds: float) -> bool:
    """Whether `what()` becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.2)
    return False
