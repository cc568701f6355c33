"""The bake file is BuildKit's own: nobody needs this tool to build from it."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from kit import TARGET, imgbuild
from scratch import call_tool

from imgbuild import bases
from imgbuild.engines.docker import Docker
from imgbuild.matrix import load_matrix
from imgbuild.render import Renderer


@pytest.fixture(scope="module")
def bake_file(client, copy):
    """`imgbuild render` and `imgbuild bake > docker-bake.json`, in the project's folder."""
    call_tool(["--project", copy.root, "render"])
    path = copy.root / "docker-bake.json"
    path.write_text(imgbuild(copy, "bake").stdout)
    return path


def bake(bake_file, *words):
    return subprocess.run(
        ["docker", "buildx", "bake", "--file", bake_file.name, *words],
        cwd=bake_file.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_buildx_accepts_it(bake_file, copy):
    done = bake(bake_file, "--print")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert set(printed["target"]) == set(load_matrix(copy.images).targets)
    assert printed["target"][TARGET]["target"] == "runtime"


@pytest.mark.parametrize("stage", ["nodes", "comfyrun"])
def test_a_stage_builds_without_the_tool(bake_file, cpu, cache, stage):
    plan = cpu.image.plan
    words = ["--set", f"{TARGET}.target={stage}", "--set", f"{TARGET}.output=type=cacheonly"]
    # ComfyUI's repository is no part of these stages, and may be out of reach.
    words += ["--set", f"{TARGET}.contexts.comfyui-src={bake_file.parent / 'nodes'}"]
    setup = Renderer(bake_file.parent / "templates").context(plan)["base-setup.sh"]
    local = bases.find_base(cache, plan.base, setup)
    if local is not None:  # bootstrapped, as no registry could be reached
        words += ["--set", f"{TARGET}.contexts.base={local.context}"]
        words += ["--set", f"{TARGET}.contexts.host={local.context}"]
    if Docker(os.environ).buildx_version() >= (0, 17):
        words += ["--allow", "fs.read=/"]
    done = bake(bake_file, "--progress", "plain", *words, TARGET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"[{stage} " in done.stderr
    assert "[venv-" not in done.stderr
