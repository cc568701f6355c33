"""The commands as people and programs meet them, over a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from badserver import COMMIT, Fault
from models_fixtures import a_hub, a_server  # noqa: F401  (fixtures)
from modelskit import content, model_list

ROOT = Path(__file__).parents[2]
BYTES = content(50_000)
SHA = hashlib.sha256(BYTES).hexdigest()
OPEN = {
    "repository": "owner/model",
    "file": "split/m.safetensors",
    "revision": "main",
    "folder": "diffusion_models",
}

COMMENTED = """\
# My models.
schema: 1
title: Mine
source: me
models:
- name: tiny   # the small one
  title: Tiny
  licence: MIT
  workloads: [image]
  files:
  # from the hub
  - repository: owner/model
    file: split/m.safetensors
    revision: main
    folder: diffusion_models   # where the loader looks

# the end
"""


@pytest.fixture
def run(tmp_path):
    def run(*arguments, **environ):
        return subprocess.run(
            [sys.executable, "-m", "comfywork.models", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "PYTHONPATH": str(ROOT / "entrypoint"),
                "MODELS_PATH": str(tmp_path / "models"),
                **environ,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
        )

    return run


@pytest.fixture(name="listed")
def a_list(tmp_path):
    path = tmp_path / "l.yaml"
    path.write_text(COMMENTED)
    return path


def test_the_whole_way(run, hub, listed, tmp_path):
    """Lock, pull, list, verify, pull again, damage, verify, repair."""
    hub.publish("owner/model", "split/m.safetensors", BYTES)
    at = {"HF_ENDPOINT": hub.url}
    assert run("pull", "l.yaml", **at).returncode == 2
    assert run("lock", "l.yaml", "--check", **at).returncode == 1
    assert listed.read_text() == COMMENTED
    done = run("lock", "l.yaml", **at)
    assert done.returncode == 0, done.stderr
    text = listed.read_text()
    for kept in (
        "# My models.",
        "# the small one",
        "  # from the hub",
        "# where the loader looks",
        "# the end",
    ):
        assert kept in text
    added = set(text.splitlines()) - set(COMMENTED.splitlines())
    assert added == {f"    revision: {COMMIT}", "    size: 50000", f"    sha256: {SHA}"}
    assert run("lock", "l.yaml", "--check", **at).returncode == 0

    done = run("pull", "l.yaml", "--json", **at)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)["files"][0]
    assert (outcome["outcome"], outcome["evidence"], outcome["sha256"]) == ("fetched", "the list", SHA)
    target = tmp_path / "models" / "diffusion_models" / "m.safetensors"
    assert target.read_bytes() == BYTES

    state = json.loads(run("list", "l.yaml", "--json").stdout)["lists"][0]["models"][0]["files"][0]
    assert (state["state"], state["bytes_here"]) == ("right", 50_000)
    assert run("verify", "l.yaml").returncode == 0
    assert "already right" in run("pull", "l.yaml", **at).stdout

    target.write_bytes(BYTES[:-1] + b"x")
    assert run("verify", "l.yaml", "--quick").returncode == 0  # the size is right
    done = run("verify", "l.yaml", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)["files"][0]
    assert found["state"] == "wrong hash"
    assert SHA in found["detail"]
    assert run("pull", "l.yaml", **at).returncode == 1
    assert run("pull", "l.yaml", "--replace", **at).returncode == 0
    assert target.read_bytes() == BYTES

    target.write_bytes(b"short")
    done = run("verify", "l.yaml", "--quick")
    assert done.returncode == 1
    assert "5 bytes, the list says 50,000" in done.stdout


def test_unlocked(run, hub, listed, tmp_path):
    hub.publish("owner/model", "split/m.safetensors", BYTES)
    done = run("pull", "l.yaml", "--unlocked", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert "the hub" in done.stdout
    assert "not locked" in done.stderr
    done = run("verify", "l.yaml", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["files"][0]["state"] == "right"
    (tmp_path / "models" / "diffusion_models" / "m.safetensors").write_bytes(content(50_000, seed=2))
    assert "it had when it was pulled" in run("verify", "l.yaml").stdout.replace("\n", " ")


@pytest.mark.parametrize(
    "command", [["list", "sdxl"], ["list"], ["budget", "sdxl"], ["verify", "sdxl", "--quick"]]
)
def test_every_command_says_that_a_shipped_list_is_not_locked(run, command):
    assert "not locked" in run(*command).stderr


def test_budget_says_whose_figures_they_are(run):
    done = run("budget", "h100-workshop")
    assert done.returncode == 0
    assert "h100-gpu-workers: Wan 2.2, 28GB VRAM" in done.stdout
    assert "Nothing here was measured" in done.stdout
    value = json.loads(run("budget", "h100-workshop", "--gpu-memory", "96", "--json").stdout)
    assert value["measured"] is False
    assert value["targets"][0]["memory"] == 96


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pull"], "which list?"),
        (["pull", "nothing"], "no list is called 'nothing'"),
        (["pull", "./nothing.yaml"], "cannot be read"),
        (["pull", "sdxl", "--only", "sdxl-bas"], "did you mean 'sdxl-base'"),
        (["budget", "sdxl", "--workload", "vidio"], "no workload is called 'vidio'"),
        (["budget", "sdxl", "--target", "h200"], "did you mean 'h100'"),
        (["lock", "sdxl"], "part of the image"),
        (["pull", "sdxl", "--unlocked"], "HF_ENDPOINT=nowhere is no address"),
    ],
)
def test_bad_input(run, arguments, says):
    done = run(*arguments, HF_ENDPOINT="nowhere" if "--unlocked" in arguments else "")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_is_never_sent_in_the_open(run, listed):
    done = run("pull", "l.yaml", "--unlocked", HF_ENDPOINT="http://example.org", HF_TOKEN="hf_secret")
    assert done.returncode == 2
    assert "not encrypted" in done.stderr
    assert "hf_secret" not in done.stderr


def test_gated(run, hub, listed, tmp_path):
    hub.publish("owner/model", "split/m.safetensors", BYTES, gated=True, wants_token="hf_right")
    done = run("pull", "l.yaml", "--unlocked", HF_ENDPOINT=hub.url)
    assert done.returncode == 77
    assert f"{hub.url}/owner/model" in done.stdout.replace("\n", "")
    assert run("lock", "l.yaml", HF_ENDPOINT=hub.url).returncode == 77
    (tmp_path / "token").write_text("hf_right\n")
    done = run("pull", "l.yaml", "--unlocked", HF_ENDPOINT=hub.url, HF_TOKEN_FILE=str(tmp_path / "token"))
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_made(run, hub, listed, tmp_path):
    hub.publish("owner/model", "split/m.safetensors", BYTES)
    (tmp_path / "file").write_text("")
    done = run("pull", "l.yaml", "--unlocked", "--models", str(tmp_path / "file" / "x"), HF_ENDPOINT=hub.url)
    assert done.returncode == 69
    assert "Traceback" not in done.stderr


class TestLock:
    def test_a_shipped_list_into_a_file(self, run, hub, tmp_path):
        for file in ("sd_xl_base_1.0.safetensors",):
            hub.publish("stabilityai/stable-diffusion-xl-base-1.0", file, BYTES)
        hub.publish("stabilityai/stable-diffusion-xl-refiner-1.0", "sd_xl_refiner_1.0.safetensors", BYTES)
        done = run("lock", "sdxl", "--output", "mine.yaml", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        assert "not locked" not in run("list", "./mine.yaml").stderr
        assert run("pull", "./mine.yaml", HF_ENDPOINT=hub.url).returncode == 0

    def test_nothing_is_written_when_one_fails(self, run, hub, listed):
        before = listed.read_text()
        done = run("lock", "l.yaml", HF_ENDPOINT=hub.url)
        assert done.returncode == 77
        assert "no such repository" in done.stdout.replace("\n", " ")
        assert listed.read_text() == before

    def test_a_locked_file_that_changed_shows_in_check_and_only_upgrade_moves_the_commit(
        self, run, hub, listed
    ):
        served = hub.publish("owner/model", "split/m.safetensors", BYTES)
        assert run("lock", "l.yaml", HF_ENDPOINT=hub.url).returncode == 0
        served.change(content(40_000, seed=3))
        done = run("lock", "l.yaml", "--check", "--json", HF_ENDPOINT=hub.url)
        assert done.returncode == 1
        assert json.loads(done.stdout)["files"][0]["changes"]["size"] == 40_000
        assert run("lock", "l.yaml", "--upgrade", "main", HF_ENDPOINT=hub.url).returncode == 0

    def test_an_address_without_a_hash_has_to_be_read(self, run, server, tmp_path):
        served = server.add("/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 100), Fault("status", 503)])
        (tmp_path / "u.yaml").write_text(model_list({"url": f"{server.url}/m.safetensors", "folder": "vae"}))
        done = run("lock", "u.yaml")
        assert done.returncode == 1
        assert "--fetch" in done.stderr
        done = run("lock", "u.yaml", "--fetch")
        assert done.returncode == 0, done.stderr
        assert SHA in (tmp_path / "u.yaml").read_text()
        assert run("pull", "u.yaml").returncode == 0
