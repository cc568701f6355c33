"""Folders of the host, mounted where the documentation says: what is written through them lands there."""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING

import pngpixels
import pytest
from comfyclient import invert_workflow
from imagecontainers import Recipe
from runningimage import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imagecontainers import Engine
    from runningimage import Running

pytestmark = pytest.mark.ring1


@pytest.fixture(scope="module")
def uid() -> int:
    """Root's tests take any; another user's folders belong to that user."""
    return os.getuid() or random.Random().randint(20_000, 60_000)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    for name in ("data", "cache", "models", "more/loras"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o777)
    (folder / "more/loras/shared.safetensors").write_bytes(b"")
    # pytest's own folder is for its user alone; the container's user has to come through.
    for above in folder.parents:
        if above.stat().st_uid == os.getuid() and "pytest" in above.name:
            above.chmod(0o755)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def hosted(engine: Engine, image: str, host: Path, uid: int, ready_timeout: float) -> Iterator[Running]:
    options = ("--userns", "keep-id") if engine.name == "podman" and os.getuid() else ()
    recipe = Recipe(user=f"{uid}:{uid}", environment={"COMFY_MODELS": "/mnt/more"}, options=options)
    mounts = (
        *(f"{host}/data:/data", f"{host}/cache:/cache"),
        *(f"{host}/models:/data/models", f"{host}/more:/mnt/more:ro"),
    )
    with serving(engine, image, recipe, mounts=mounts, timeout=ready_timeout, what="hosted") as found:
        yield found


def test_output_lands_on_the_host(hosted: Running, host: Path, uid: int) -> None:
    """A picture is a file of the host, whole, and belongs to the user that the container was given."""
    (stored,) = hosted.client.run(invert_workflow(32, 32, 0, "sub/lands")).images
    path = host / "data/output" / stored.subfolder / stored.filename
    assert pngpixels.decode(path.read_bytes()).width == 32
    assert path.stat().st_uid == uid


def test_input_lands_on_the_host(hosted: Running, host: Path) -> None:
    (stored,) = hosted.client.run(invert_workflow(16, 16, 0, "for-upload")).images
    data = hosted.client.view(stored)
    uploaded = hosted.client.upload("lands.png", data)
    assert (host / "data/input" / uploaded.filename).read_bytes() == data


def test_user_data_lands_on_the_host(hosted: Running, host: Path) -> None:
    """A workflow that the front end saves, and the database."""
    hosted.client.post("/userdata/workflows%2Flands.json", {"nodes": []})
    found = list((host / "data/user").rglob("lands.json"))
    assert [json.loads(p.read_text()) for p in found] == [{"nodes": []}]
    assert (host / "data/user/comfyui.db").is_file()


def test_temp_lands_on_the_host(hosted: Running, host: Path) -> None:
    workflow = invert_workflow(16, 16, 0, "x")
    workflow["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    (stored,) = hosted.client.run(workflow).images
    assert stored.type == "temp"
    assert (host / "data/temp" / stored.filename).is_file()


def test_models_of_the_host_are_found(hosted: Running, host: Path) -> None:
    """In the folder mounted at /data/models, at once; in COMFY_MODELS, read-only."""
    (host / "models/loras").mkdir(exist_ok=True)
    (host / "models/loras/mine.safetensors").write_bytes(b"")
    deadline = time.monotonic() + 10
    names: list[str] = []
    while "mine.safetensors" not in names and time.monotonic() < deadline:
        names = hosted.client.models("loras")
        time.sleep(0.2)
    assert {"mine.safetensors", "shared.safetensors"} <= set(names)


def test_what_is_compiled_lands_on_the_host(hosted: Running, host: Path) -> None:
    """/cache has a folder of its own for this target and torch."""
    assert any(p.is_dir() for p in (host / "cache").iterdir())


def test_it_stops_on_ctrl_c(hosted: Running, host: Path) -> None:
    """SIGINT: exit code 0, and the files are still there."""
    code, _ = hosted.stop("SIGINT")
    assert code == 0, hosted.log()
    assert list((host / "data/output").rglob("*.png"))
