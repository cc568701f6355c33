"""What goes wrong around a server: it survives or stops clearly, and nothing in /data is lost or half-written."""

from __future__ import annotations

import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pngpixels
import pytest
from comfyclient import ComfyClient, FailedError, RefusedError, invert_workflow
from comfysocket import Socket
from imagecontainers import Recipe, new_name
from runningimage import serving, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imagecontainers import Engine
    from runningimage import Running

pytestmark = [pytest.mark.faults, pytest.mark.heavy]

NOISE = "noise"


def noise(size: int, seed: int, prefix: str) -> dict[str, Any]:
    """A picture that no compression makes small: about 3 bytes a pixel."""
    return {
        "1": {"class_type": "ImgbuildNoise", "inputs": {"size": size, "seed": seed}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


@pytest.fixture(scope="module")
def victim(
    engine: Engine, image: str, ready_timeout: float, test_nodes: dict[str, bytes]
) -> Iterator[Running]:
    """A server that starts with a node that raises and files that are no models, and takes uploads up to 1 MB."""
    recipe = Recipe(environment={"COMFY_MAX_UPLOAD": "1"})
    files = {
        **test_nodes,
        "custom_nodes/broken-node/__init__.py": b'raise RuntimeError("this node raises on import")\n',
        "models/checkpoints/truncated.safetensors": (1 << 40).to_bytes(8, "little") + b'{"a":',
        "models/checkpoints/empty.safetensors": b"",
        "models/checkpoints/no-model.ckpt": b"PK\x03\x04 this is no checkpoint",
        "input/kept.png": b"precious",
    }
    with engine.volume(new_name("victim")) as data:
        engine.fill(image, f"{data}:/data", files, user=recipe.user)
        mounts = (f"{data}:/data",)
        with serving(engine, image, recipe, mounts=mounts, timeout=ready_timeout, what="victim") as found:
            yield found


def works(running: Running) -> bool:
    return bool(running.client.run(invert_workflow(16, 16, time.monotonic_ns() % 0xFFFFFF, "works")).images)


def test_a_node_that_raises_on_import(victim: Running) -> None:
    """The log names it, the others are loaded, the server serves."""
    assert "(IMPORT FAILED): /data/custom_nodes/broken-node" in victim.log()
    assert "this node raises on import" in victim.log()
    assert "ImgbuildTinyConditioning" in victim.client.object_info()
    assert works(victim)


@pytest.mark.parametrize("name", ["truncated.safetensors", "empty.safetensors", "no-model.ckpt"])
def test_a_corrupt_checkpoint(victim: Running, name: str) -> None:
    """The job fails in the loader, with a reason; the next one runs; the file is as it was."""
    before = victim.run("sha256sum", f"/data/models/checkpoints/{name}")
    workflow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
    }
    with pytest.raises(FailedError, match="CheckpointLoaderSimple") as caught:
        victim.client.run(workflow)
    assert len(str(caught.value)) > 40
    assert works(victim)
    assert victim.run("sha256sum", f"/data/models/checkpoints/{name}") == before


def test_an_upload_that_is_too_large(victim: Running) -> None:
    """Refused with 413 or a closed connection; nothing of it is stored; a small one is taken."""
    with pytest.raises(OSError, match=r"413|reset|[Bb]roken pipe|aborted") as caught:
        victim.client.upload("large.png", bytes(3 << 20))
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    assert "large.png" not in victim.run("ls", "/data/input")[1]
    assert victim.client.upload("small.png", b"x" * 1000).filename == "small.png"
    assert works(victim)


def test_100_clients_at_once(victim: Running, record_property: Callable[[str, object], None]) -> None:
    """Each submits and fetches a picture of its own; each gets its own."""
    begin = time.monotonic()

    def one(number: int) -> tuple[int, ...]:
        client = ComfyClient(victim.client.base_url, timeout=300)
        (stored,) = client.run(
            invert_workflow(8, 8, number * 0x010101, f"crowd/{number}"), timeout=600
        ).images
        return next(iter(pngpixels.decode(client.view(stored)).colors()))

    with ThreadPoolExecutor(100) as crowd:
        colors = list(crowd.map(one, range(100)))
    record_property("seconds_of_100_clients", round(time.monotonic() - begin, 1))
    for number, color in enumerate(colors):
        assert all(abs(value - (255 - number)) <= 1 for value in color[:3]), (number, color)
    assert works(victim)


def test_a_client_that_does_not_read(victim: Running) -> None:
    """Ten websockets that take nothing in, and a hundred prompts whose events go to them: nobody else waits."""
    deaf = [Socket(f"{victim.client.base_url.replace('http', 'ws')}/ws?clientId=deaf") for _ in range(10)]
    try:
        client = ComfyClient(victim.client.base_url, timeout=60, name="deaf")
        slowest = 0.0
        for i in range(100):
            begin = time.monotonic()
            client.run(invert_workflow(8, 8, i, "deaf"))
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 30
        assert works(victim)
    finally:
        for socket in deaf:
            socket.raw.close()
    assert works(victim)


def test_connections_that_say_nothing(victim: Running) -> None:
    """A hundred open connections without a request: the server answers others."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(victim.client.base_url)
    assert parts.port
    mute = [socket.create_connection((str(parts.hostname), parts.port), 10) for _ in range(100)]
    try:
        assert works(victim)
    finally:
        for one in mute:
            one.close()


def pictures(running: Running) -> dict[str, str]:
    """Every file of /data/output with its hash."""
    code, text = running.run("sh", "-c", "find /data/output -type f -exec sha256sum {} + || true")
    assert code == 0, text
    return {line.split(None, 1)[1]: line.split()[0] for line in text.strip().splitlines()}


def test_killed_in_the_middle(victim: Running, ready_timeout: float) -> None:
    """SIGKILL while a picture is written: started again, every earlier file is as it was, and no half one is there."""
    before = pictures(victim)
    assert before
    stop = threading.Event()

    def go_on() -> None:
        for seed in range(1000):
            if stop.is_set():
                return
            try:
                victim.client.submit(noise(1024, seed, f"{NOISE}/killed"))
            except OSError:
                return

    writer = threading.Thread(target=go_on)
    writer.start()
    time.sleep(5)
    victim.container.kill("SIGKILL")
    stop.set()
    writer.join()
    victim.container.wait()
    again = started(victim.container, ready_timeout)
    after = pictures(again)
    assert {name: after.get(name) for name in before} == before
    new = sorted(after.keys() - before.keys())
    bad = [name for name in new if not whole(again, name)]
    # ComfyUI writes a picture in place: of the one it was at, a part may be there. Only of that one.
    assert len(bad) <= 1, bad
    assert again.run("cat", "/data/input/kept.png") == (0, "precious")
    assert works(again)


def whole(running: Running, name: str) -> bool:
    """Whether a PNG in the container ends as one does."""
    end = running.run("sh", "-c", f"tail -c 8 '{name}' | od -An -tx1")[1]
    return "".join(end.split()) == "49454e44ae426082"


def test_restarted(victim: Running, ready_timeout: float) -> None:
    """As an engine does that is started again: SIGTERM, then a start. Files and settings are there."""
    before = pictures(victim)
    victim.container.engine.call("stop", "--time", "10", victim.container.name, timeout=60)
    assert victim.container.state()["ExitCode"] == 0
    again = started(victim.container, ready_timeout)
    assert pictures(again) == before
    assert works(again)


@pytest.fixture
def cramped(
    engine: Engine, image: str, ready_timeout: float, test_nodes: dict[str, bytes]
) -> Iterator[Running]:
    """A server whose output folder has room for two pictures."""
    recipe = Recipe(options=("--tmpfs", "/data/output:rw,size=8m,mode=1777"))
    with engine.volume(new_name("cramped")) as data:
        engine.fill(image, f"{data}:/data", test_nodes, user=recipe.user)
        mounts = (f"{data}:/data",)
        with serving(engine, image, recipe, mounts=mounts, timeout=ready_timeout, what="cramped") as found:
            yield found


def test_the_disk_is_full(cramped: Running) -> None:
    """The job that finds no room fails and says why; earlier files are whole; with room again, it works."""
    said = ""
    for seed in range(6):
        try:
            cramped.client.run(noise(1024, seed, NOISE))
        except FailedError as error:
            said = str(error)
            break
    assert "No space left on device" in said
    assert "SaveImage" in said
    names = list(pictures(cramped))
    assert names
    bad = [name for name in names if not whole(cramped, name)]
    assert bad == [], "a part of the picture that found no room was left"
    assert cramped.client.system_stats()
    cramped.run("sh", "-c", f"rm /data/output/{NOISE}*")
    assert works(cramped)
    with pytest.raises(RefusedError):
        cramped.client.submit({"1": {"class_type": "SaveImage", "inputs": {}}})


@pytest.mark.last
def test_it_stops_on_a_hangup(victim: Running) -> None:
    """SIGHUP: exit code 0, as with every other way of asking."""
    code, _ = victim.stop("SIGHUP")
    assert code == 0, victim.log()
