"""The kernels' way through a real engine, with the probe, which compiles in seconds: every target, and both ways wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from kit import imgbuild
from scratch import replace_in

from imgbuild import bases
from imgbuild.engines.docker import Docker
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.render import Renderer, bake_file, pretty, write
from imgbuild.settings import read_settings

CODE = {
    "gb10": ("12.1", "sm_121", "aarch64"),
    "h100": ("9.0", "sm_90", "x86_64"),
    "ada": ("8.9", "sm_89", "x86_64"),
}


@pytest.fixture(scope="module")
def probes(client, copy):
    """The probe for every GPU target, compiled if it is not in this machine's wheelhouse: entries by target."""
    words = [w for name in CODE for w in ("--target", name)]
    done = imgbuild(copy, "wheels", "build", *words, "--kernel", "probe", "--progress", "plain")
    assert done.returncode == 0, done.stderr[-3000:]
    entries = json.loads(imgbuild(copy, "wheels", "list", "--json", "--kernel", "probe").stdout)
    by_key = {e["key"]: e for e in entries}
    matrix = load_matrix(copy.images)
    found = {}
    for name in CODE:
        (kernel,) = (k for k in make_plan(copy, matrix, matrix.targets[name]).kernels if k.name == "probe")
        found[name] = by_key[kernel.key]
    return found


@pytest.mark.parametrize("target", CODE)
def test_it_holds_code_for_its_target_and_no_other(probes, copy, target):
    capability, code, machine = CODE[target]
    wheel = Path(probes[target]["wheel"])
    assert machine in wheel.name
    assert probes[target]["arches"] == [code]
    done = imgbuild(copy, "verify", wheel, "--target", target)
    assert done.returncode == 0, done.stderr
    assert capability in done.stdout + done.stderr


def test_the_wrong_wheel_is_refused(probes, copy):
    done = imgbuild(copy, "verify", probes["ada"]["wheel"], "--target", "h100")
    assert done.returncode == 7
    assert "libimgbuild_probe.so" in done.stderr
    assert "sm_89" in done.stderr


def test_a_wheel_for_another_gpu_fails_the_build(client, probes, copy, cache, tmp_path):
    """As if a wheelhouse had given ada's wheel for h100's key: the stage that installs it opens it first."""
    matrix = load_matrix(copy.images)
    plan = make_plan(copy, matrix, matrix.targets["h100"])
    files = Renderer(copy.templates).context(plan)
    write(files, tmp_path / "h100")
    foreign = tmp_path / "wheel"
    foreign.mkdir()
    shutil.copy(probes["ada"]["wheel"], foreign)
    local = bases.find_base(cache, plan.base, files["base-setup.sh"])
    bake = bake_file(
        [plan],
        folder=str(tmp_path),
        contexts={
            "entrypoint": str(copy.entrypoint),
            "nodes-src": str(copy.nodes),
            "kernel-probe": str(foreign),
        },
        base_contexts={plan.base.name: local.context} if local else {},
    )
    # What this machine needs to reach an index: uv's own stage may not be in the cache.
    settings = read_settings(os.environ)
    secrets = [f"id=machine,src={tmp_path / 'machine'}"]
    (tmp_path / "machine").write_text(settings.secret())
    if settings.ca_bundle:
        secrets.append(f"id=ca,src={settings.ca_bundle}")
    bake["target"]["h100"]["secret"] = secrets
    entry = bake["target"]["h100"] | {"target": "venv-kernel-probe", "output": ["type=cacheonly"], "tags": []}
    (tmp_path / "bake.json").write_text(pretty({"target": {"h100": entry}}))
    words = ["--allow", "fs.read=/"] if Docker(os.environ).buildx_version() >= (0, 17) else []
    done = subprocess.run(
        ["docker", "buildx", "bake", "--file", tmp_path / "bake.json", "--progress", "plain", *words, "h100"],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode != 0
    assert "libimgbuild_probe.so holds sm_89, wanted sm_90" in done.stderr


def test_a_recipe_that_spells_wrong_fails_the_compile(client, changed):
    """What the compiler was told and what the recipe promises differ: no such wheel gets into the wheelhouse."""
    replace_in(
        changed.images / "comfyui.yaml",
        '"9.0": { write: sm_90, code: [sm_90] }\n      "10.0": { write: sm_100',
        '"9.0": { write: sm_89, code: [sm_90] }\n      "10.0": { write: sm_100',
    )
    done = imgbuild(
        changed, "wheels", "build", "--target", "h100", "--kernel", "probe", "--progress", "plain"
    )
    assert done.returncode == 7, done.stderr[-2000:]
    assert "libimgbuild_probe.so holds sm_89, wanted sm_90" in done.stderr
    matrix = load_matrix(changed.images)
    plan = make_plan(changed, matrix, matrix.targets["h100"])
    listed = imgbuild(changed, "wheels", "list", "--json").stdout
    assert next(k.key for k in plan.kernels if k.name == "probe") not in listed


@pytest.fixture
def registry(tmp_path):
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: imgbuild doctor --fix")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}/team"
    finally:
        process.terminate()
        process.wait()


def test_another_machine_compiles_nothing(probes, copy, registry, tmp_path):
    key = probes["gb10"]["key"]
    done = imgbuild(copy, "wheels", "push", key, "--wheelhouse", registry)
    assert done.returncode == 0, done.stderr
    other = {**os.environ, "IMGBUILD_CACHE": str(tmp_path / "other")}
    words = ("wheels", "build", "--target", "gb10", "--kernel", "probe", "--wheelhouse", registry)
    done = imgbuild(copy, *words, env=other)
    assert done.returncode == 0, done.stderr
    assert f"pulled from {registry}" in done.stderr
    listed = json.loads(imgbuild(copy, "wheels", "list", "--json", env=other).stdout)
    assert [(e["key"], e["sha256"]) for e in listed] == [(key, probes["gb10"]["sha256"])]
    log = "".join(p.read_text() for p in (tmp_path / "other" / "logs").glob("*"))
    assert "compile.py" not in log
