"""Does it start, keep quiet, say how it is, and stop? Without a GPU, for every target."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pngpixels
import pytest
from comfyclient import RefusedError, invert_workflow
from imagecontainers import STANDARD
from runningimage import health

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagecontainers import Engine
    from imageresults import ImageResults
    from runningimage import Running

    from imgbuild.plan import Plan
    from imgbuild.subject import Subject

pytestmark = pytest.mark.ring1

WIDTH, HEIGHT, COLOR = 64, 48, 0x3366CC
INVERTED = (0xCC, 0x99, 0x33)


# --- before a server ---------------------------------------------------------------------------------


def test_a_profiles_flags_parse(profile_name: str, plan: Plan, engine: Engine, image: str) -> None:
    """The ComfyUI that is in the image takes every flag of the profile."""
    flags = [word for flag in plan.profile["profiles"][profile_name]["flags"] for word in flag]
    script = (
        "import sys; sys.path.insert(0, '/opt/comfyui'); sys.argv[0] = 'main.py'; "
        "import comfy.options; comfy.options.enable_args_parsing(); import comfy.cli_args"
    )
    options = (*STANDARD, "--network", "none")
    done = engine.run(image, "-c", script, *flags, entrypoint="python", options=options, check=False)
    assert done.code == 0, done.text


def test_it_shows_what_it_would_run(plan: Plan, engine: Engine, image: str) -> None:
    """`serve --print` names the target and starts nothing; each flag of the default profile is in it."""
    done = engine.run(
        image,
        "serve",
        "--print",
        "--json",
        entrypoint="comfyrun",
        options=(*STANDARD, "--network", "none"),
        check=False,
    )
    assert done.code == 0, done.text
    shown = json.dumps(json.loads(done.out))
    for flag in plan.profile["profiles"]["default"]["flags"]:
        assert flag[0] in shown


def test_an_unknown_flag_is_refused(engine: Engine, image: str) -> None:
    """Exit code 2, before anything starts."""
    done = engine.run(
        image,
        "serve",
        "--no-such-flag",
        entrypoint="comfyrun",
        options=(*STANDARD, "--network", "none"),
        check=False,
    )
    assert done.code == 2, done.text
    assert "--no-such-flag" in done.text


# --- a server that everybody shares --------------------------------------------------------------------


def test_it_is_alive(
    running: Running, record_property: Callable[[str, object], None], results: ImageResults
) -> None:
    stats = running.client.system_stats()
    assert stats["devices"][0]["type"] == "cpu"
    assert "--cpu" in stats["system"]["argv"]
    record_property("seconds_to_alive", round(running.seconds_to_alive, 2))
    record_property("seconds_to_ready", round(running.seconds_to_ready, 2))
    results.facts["server"] = {k: v for k, v in stats["system"].items() if k.endswith("_version")}


@pytest.mark.parametrize("arguments", [(), ("--ready",)], ids=["alive", "ready"])
def test_comfyrun_finds_it_healthy(running: Running, arguments: tuple[str, ...]) -> None:
    code, output = running.run("comfyrun", "health", *arguments)
    assert code == 0, output
    assert len(output.splitlines()) == 1
    code, output = running.run("comfyrun", "health", "--json", *arguments)
    assert code == 0, output
    shown = json.loads(output)
    # {} is what its parent tells; None would be that nobody told.
    assert (shown["device"], shown["attention_fallbacks"]) == ("cpu", {})


def test_its_health_goes_from_starting_to_healthy(running: Running, config: dict[str, Any]) -> None:
    check = config["Config"].get("Healthcheck") or config.get("Healthcheck")
    if not check:
        pytest.skip("the image has no health check (the OCI format of some engines drops it)")
    engine = running.container.engine
    if engine.name == "podman":  # it asks by a timer of systemd, which may not be there
        assert engine.call("healthcheck", "run", running.container.name, check=False).code == 0
        return
    deadline = time.monotonic() + 120 * engine.patience
    status = health(running.container)
    while status != "healthy" and time.monotonic() < deadline:
        time.sleep(0.5)
        status = health(running.container)
    assert status == "healthy"
    assert "unhealthy" not in running.healths
    if running.seconds_to_alive > 3:
        assert running.healths[0] == "starting"


def test_it_runs_as_the_user_it_was_given(running: Running) -> None:
    """A UID that no image knows, and no right at all: the process itself says so."""
    assert running.run("id", "-u") == (0, "4321\n")
    status = running.container.read(f"/proc/{running.server()}/status")
    fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
    assert fields["Uid"].split() == ["4321"] * 4
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_its_root_is_read_only(running: Running) -> None:
    for folder in ("/opt/venv", "/opt/comfyui", "/etc", "/usr"):
        code, output = running.run("touch", f"{folder}/x")
        assert code, folder
        assert "Read-only" in output or "Permission denied" in output


def test_pid_1_is_tini(running: Running, subject: Subject) -> None:
    words = running.container.read("/proc/1/cmdline").split("\0")
    if subject.emulated:  # the emulator, the program's path, and then the words as they were
        words = words[2:]
    assert words[:3] == ["/usr/bin/tini", "--", "comfyrun"]


def test_orphans_are_reaped(running: Running) -> None:
    """A process whose parent is gone leaves no zombie."""
    count = "import glob; print(sum(' Z ' in open(p).read() for p in glob.glob('/proc/[0-9]*/stat')))"
    running.run("sh", "-c", "(sleep 0.2 &) ; (sleep 0.2 &)")
    time.sleep(1)
    code, output = running.run("python", "-c", count)
    assert (code, output.strip()) == (0, "0")


def test_it_generates_the_right_picture(
    running: Running, record_property: Callable[[str, object], None]
) -> None:
    begin = time.monotonic()
    result = running.client.run(invert_workflow(WIDTH, HEIGHT, COLOR, "smoke"))
    record_property("seconds_of_workflow", round(time.monotonic() - begin, 3))
    (stored,) = result.images
    assert stored.type == "output"
    picture = pngpixels.decode(running.client.view(stored))
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    (color,) = picture.colors()
    # ComfyUI cuts 255 times a float off to a byte, so one below is right too.
    assert all(abs(got - wanted) <= 1 for got, wanted in zip(color[:3], INVERTED, strict=True)), color


def test_it_says_what_is_wrong_with_a_workflow(running: Running) -> None:
    workflow = invert_workflow(WIDTH, HEIGHT, COLOR, "smoke")
    del workflow["2"]["inputs"]["image"]
    with pytest.raises(RefusedError) as caught:
        running.client.submit(workflow)
    assert "2" in caught.value.node_errors


def test_it_knows_its_nodes(running: Running) -> None:
    nodes = running.client.object_info()
    assert {"SaveImage", "KSampler", "CheckpointLoaderSimple", "SaveAudio"} <= nodes.keys()


# What a node's package registers, asked of the package itself: some fill the mapping as they are imported.
_REGISTERED = """
import importlib, json, sys
sys.path[:0] = ["/opt/comfyui", "/opt/nodes"]
sys.argv = ["main.py", "--cpu", "--base-directory", "/data"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes
found = importlib.import_module({name!r})
print("=== registered ===")
print(json.dumps(sorted(found.NODE_CLASS_MAPPINGS)))
"""


def test_a_baked_node_is_in_object_info(running: Running, baked_node: str) -> None:
    """Every class that the node's package registers is offered by the server, and comes from /opt/nodes."""
    assert f"/opt/nodes/{baked_node}" in running.log()
    done = running.container.exec("python", "-c", _REGISTERED.format(name=baked_node), timeout=300)
    assert done.code == 0, done.text
    registered = json.loads(done.out.partition("=== registered ===")[2])
    offered = running.client.object_info()
    assert [name for name in registered if name not in offered] == []
    assert all(str(offered[name]["python_module"]).endswith(baked_node) for name in registered)


# What a good start may say that looks like trouble, each with its reason.
_MAY_SAY = (
    r"Failed to check frontend version",  # an offline start
    r"torch\.compile|triton",  # CPU only: nothing is compiled
)
_TROUBLE = re.compile(
    r"\bERROR\b|\bWARNING\b|\bCRITICAL\b|\bError\b|\bwarning\b|Traceback|IMPORT FAILED|Exception|deprecat",
    re.IGNORECASE,
)


def trouble(log: str) -> list[str]:
    return [
        line
        for line in log.splitlines()
        if _TROUBLE.search(line) and not any(re.search(pattern, line) for pattern in _MAY_SAY)
    ]


def test_its_start_says_no_error_and_no_warning(running: Running) -> None:
    """Between the first line and "To see the GUI" nothing looks like trouble."""
    begin, found, _ = running.log().partition("To see the GUI")
    assert found
    assert trouble(begin) == []


def test_torch_is_the_same_after_nodes(running: Running, plan: Plan) -> None:
    """Custom nodes were loaded, and the process still runs the torch of the image."""
    # The wheel of the package index is called 2.13.0, and says of itself which CUDA it was made with.
    wanted = f"{plan.torch}+cu{plan.cuda.replace('.', '')}" if plan.cuda else plan.torch
    assert running.client.system_stats()["system"]["pytorch_version"] == wanted
    code, output = running.run("python", "-c", "import torch; print(torch.__version__, torch.__file__)")
    assert code == 0, output
    assert output.split()[0] == wanted
    assert output.split()[1].startswith("/opt/venv/")


NODE = "/data/input/a-node"
MAKE_NODE = f"mkdir -p {NODE} && touch {NODE}/__init__.py"


def test_a_node_cannot_replace_torch(running: Running) -> None:
    command = f"{MAKE_NODE} && echo torch==2.5.0 > {NODE}/requirements.txt && "
    code, output = running.run("sh", "-c", f"{command} PIP_NO_INDEX=1 comfyrun nodes install {NODE}")
    assert code == 2, output
    assert "refused: a-node asks for torch==2.5.0, and this image has torch 2." in output
    assert "a-node" not in running.run("ls", "/data/custom_nodes")[1].split()


def test_a_node_comes_and_goes(running: Running) -> None:
    command = f"{MAKE_NODE} && echo 'torch>=2' > {NODE}/requirements.txt && "
    code, output = running.run(
        "sh", "-c", f"{command} PIP_NO_INDEX=1 comfyrun nodes install {NODE}", timeout=300
    )
    assert code == 0, output
    code, output = running.run("comfyrun", "nodes", "list", "--json")
    assert code == 0, output
    assert {n["name"]: n["kind"] for n in json.loads(output)["nodes"]}["a-node"] == "installed"
    assert running.run("comfyrun", "nodes", "remove", "a-node")[0] == 0
    assert "a-node" not in running.run("ls", "/data/custom_nodes")[1].split()


# --- the end ---------------------------------------------------------------------------------------------


# The last of all, since it ends the container that the others share.
@pytest.mark.last
def test_it_stops_when_asked(running: Running, record_property: Callable[[str, object], None]) -> None:
    """SIGTERM, with nothing to do: exit code 0 in less than the ten seconds that an engine gives."""
    code, seconds = running.stop("SIGTERM")
    record_property("seconds_to_stop", round(seconds, 2))
    record_property("exit_code_on_sigterm", code)
    assert seconds < 10 * running.container.engine.patience
    assert code == 0, running.log()
