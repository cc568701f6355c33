"""The server's interface as the shipped client uses it: queue, history, interrupt, uploads, and what it refuses."""

from __future__ import annotations

import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

import pngpixels
import pytest
from comfyclient import (
    ComfyError,
    FailedError,
    InterruptedPromptError,
    RefusedError,
    StoredImage,
    Template,
    invert_workflow,
    load_template,
)

if TYPE_CHECKING:
    from runningimage import Running

    from imgbuild.project import Project

pytestmark = pytest.mark.ring2


@pytest.fixture(scope="module")
def txt2img(project: Project) -> Template:
    return load_template(project.images / "workflows/txt2img.json")


def slow(seconds: int = 60) -> dict[str, Any]:
    """A workflow that takes its time on a CPU and needs no model: large pictures, scaled again and again."""
    made: dict[str, Any] = invert_workflow(2048, 2048, time.monotonic_ns() % 0xFFFFFF, "slow")
    source: list[Any] = ["2", 0]
    for i in range(10, 10 + 4 * seconds):
        size = 2000 + i
        inputs = {
            "image": source,
            "upscale_method": "lanczos",
            "width": size,
            "height": size,
            "crop": "disabled",
        }
        made[str(i)] = {"class_type": "ImageScale", "inputs": inputs}
        source = [str(i), 0]
    made["3"]["inputs"]["images"] = source
    return made


def wait_for(what: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return False


def png(width: int, height: int, color: tuple[int, ...]) -> bytes:
    """A picture of one colour, RGB or RGBA."""
    rows = (b"\0" + bytes(color) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if len(color) == 3 else 6, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return pngpixels.SIGNATURE + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )


# --- queue, history, interrupt ---------------------------------------------------------------------------


@pytest.fixture
def quiet(running: Running) -> Any:
    """Whatever a test leaves in the queue is gone afterwards."""
    yield running.client
    running.client.clear_queue()
    running.client.interrupt()
    assert wait_for(lambda: not running.client.queue().running, 300 * running.container.engine.patience)


def test_the_queue_shows_what_runs_and_what_waits(running: Running, quiet: Any) -> None:
    client = running.client
    first = client.submit(slow())
    rest = [client.submit(invert_workflow(16, 16, i, "waits")) for i in range(3)]
    assert wait_for(lambda: client.queue().running == (first,), 30)
    assert set(client.queue().pending) == set(rest)
    client.cancel([rest[0]])
    assert set(client.queue().pending) == set(rest[1:])
    client.clear_queue()
    assert client.queue().pending == ()
    assert client.queue().running == (first,)


def test_an_interrupt_stops_the_one_that_runs(running: Running, quiet: Any) -> None:
    """The interrupted one ends as such; the one behind it runs; the server goes on."""
    client = running.client
    first, second = client.submit(slow()), client.submit(invert_workflow(16, 16, 5, "behind"))
    assert wait_for(lambda: client.queue().running == (first,), 30)
    client.interrupt(first)
    with pytest.raises(InterruptedPromptError):
        client.wait(first, timeout=120)
    assert client.wait(second, timeout=120).images


def test_an_interrupt_of_another_one_stops_nothing(running: Running, quiet: Any) -> None:
    client = running.client
    first = client.submit(slow())
    assert wait_for(lambda: client.queue().running == (first,), 30)
    client.interrupt("00000000-0000-4000-8000-000000000000")
    time.sleep(1)
    assert client.queue().running == (first,)


def test_history_keeps_and_forgets(running: Running) -> None:
    client = running.client
    ids = [client.run(invert_workflow(16, 16, i, "history")).prompt_id for i in range(2)]
    assert set(ids) <= client.history().keys()
    client.forget(ids[:1])
    assert ids[0] not in client.history()
    assert ids[1] in client.history()


# --- files ---------------------------------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}},
    }


def test_an_uploaded_picture_comes_back(running: Running) -> None:
    data = png(24, 16, (10, 20, 30))
    uploaded = running.client.upload("mine.png", data, subfolder="of mine")
    assert running.client.view(uploaded) == data
    (stored,) = running.client.run(load(uploaded.name)).images
    assert pngpixels.decode(running.client.view(stored)).colors() == {(10, 20, 30)}


def test_an_upload_replaces_nothing_unasked(running: Running) -> None:
    """The same name with other content gets a name of its own; with overwrite it takes the place."""
    client = running.client
    first = client.upload("twice.png", png(8, 8, (1, 1, 1)))
    assert client.upload("twice.png", png(8, 8, (1, 1, 1))).filename == first.filename
    second = client.upload("twice.png", png(8, 8, (2, 2, 2)))
    assert second.filename != first.filename
    assert pngpixels.decode(client.view(first)).colors() == {(1, 1, 1)}
    client.upload("twice.png", png(8, 8, (3, 3, 3)), overwrite=True)
    assert pngpixels.decode(client.view(first)).colors() == {(3, 3, 3)}


def test_a_mask_is_uploaded_onto_its_picture(running: Running) -> None:
    of = running.client.upload("masked.png", png(8, 8, (9, 8, 7)))
    mask = running.client.upload_mask("mask.png", png(8, 8, (0, 0, 0, 128)), of)
    assert pngpixels.decode(running.client.view(mask)).colors() == {(9, 8, 7, 128)}


def test_nothing_is_written_outside_the_input_folder(running: Running) -> None:
    for folder in ("../../etc", "/etc", "../output"):
        with pytest.raises(OSError, match=r"40[03]"):
            running.client.upload("evil.png", png(8, 8, (0, 0, 0)), subfolder=folder)
    with pytest.raises(OSError, match=r"40[034]"):
        running.client.view(StoredImage(filename="../../etc/passwd", subfolder="", type="input"))


# --- what is refused, and how --------------------------------------------------------------------------------


def test_a_wrong_model_name_is_refused_with_the_remedy(running: Running, txt2img: Template) -> None:
    """Which node, which name, where the file belongs."""
    with pytest.raises(RefusedError) as caught:
        running.client.submit(txt2img.fill(checkpoint="no-such-model.safetensors"))
    (remedy,) = caught.value.remedies
    assert "node 1 (CheckpointLoaderSimple)" in remedy
    assert "there is no 'no-such-model.safetensors'" in remedy
    assert "models/checkpoints" in remedy


def test_a_missing_input_is_refused_with_the_remedy(running: Running) -> None:
    workflow = invert_workflow(16, 16, 0, "x")
    del workflow["2"]["inputs"]["image"]
    with pytest.raises(RefusedError, match=r"node 2 \(ImageInvert\): image is missing"):
        running.client.submit(workflow)


def test_a_wrong_connection_is_refused_with_the_remedy(running: Running, txt2img: Template) -> None:
    workflow = invert_workflow(16, 16, 0, "x")
    workflow["4"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    workflow["2"]["inputs"]["image"] = ["4", 0]
    with pytest.raises(RefusedError, match="another type of output"):
        running.client.submit(workflow)


def test_a_value_out_of_range_is_refused_with_the_remedy(running: Running) -> None:
    with pytest.raises(RefusedError, match="width = 0: from 1 to"):
        running.client.submit(invert_workflow(0, 16, 0, "x"))


def test_an_unknown_node_is_refused(running: Running) -> None:
    workflow = invert_workflow(16, 16, 0, "x")
    workflow["2"]["class_type"] = "NoSuchNode"
    with pytest.raises(ComfyError, match=r"NoSuchNode|not found|does not exist"):
        running.client.submit(workflow)


def test_a_workflow_without_output_is_refused(running: Running) -> None:
    workflow = invert_workflow(16, 16, 0, "x")
    del workflow["3"]
    with pytest.raises(ComfyError, match="no outputs"):
        running.client.submit(workflow)


def test_a_node_that_fails_says_which(running: Running) -> None:
    """A file that is no picture: the job says which node could not read it, and the next one runs."""
    running.client.upload("broken.png", b"no picture at all", overwrite=True)
    with pytest.raises((FailedError, RefusedError), match=r"LoadImage|node 1|Invalid image"):
        running.client.run(load("broken.png"))
    assert running.client.run(invert_workflow(16, 16, 1, "after")).images


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": 1}', b"\xff" * 1000])
def test_nonsense_is_refused_and_the_server_goes_on(running: Running, body: bytes) -> None:
    with pytest.raises(OSError, match=r"[45]\d\d"):
        running.client._once("POST", "/prompt", body, "application/json")
    assert running.client.run(invert_workflow(16, 16, 2, "after")).images
