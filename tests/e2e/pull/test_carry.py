"""save and load: there and back, by Docker and Podman, and what is damaged on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import ROOT, imgbuild
from pullkit import NAME, pull, tiny
from tinyimages import push

from imgbuild.engines.podman import Podman
from imgbuild.engines.store import store
from imgbuild.matrix import load_matrix
from imgbuild.pull import offers, to_move
from imgbuild.reference import Reference

if TYPE_CHECKING:
    from imgbuild.project import Project


@pytest.fixture
def saved(own: Project, where: str, tmp_path: Path) -> Path:
    done = pull(own, "--target", "cpu", "--registry", where)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "cpu.tar.zst"
    done = imgbuild(own, "save", "-t", "cpu", "-o", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imgbuild load {path}"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path


def test_there_and_back(client, own, saved, published):
    client.api.remove_image(f"{NAME}:cpu", force=True)
    done = imgbuild(own, "load", saved)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "imgbuild run --target cpu"
    assert client.images.get(f"{NAME}:cpu").id == published["cpu"]


def test_the_archive_is_looked_at_like_an_image(own, saved, where):
    said = json.loads(imgbuild(own, "diff", saved, f"{where}:cpu", "--json", "--deep").stdout)
    assert said["same"]
    info = json.loads(imgbuild(own, "inspect", saved, "--packages", "--json").stdout)
    assert info["packages"]["python"] == {"torch": "2.13.0"}
    assert info["tags"] == [f"{NAME}:cpu"]


def test_an_sbom_travels_with_it(own, saved, tmp_path):
    bom = {"bomFormat": "CycloneDX", "components": [{"purl": "pkg:pypi/numpy@2.4.0"}]}
    (tmp_path / "bom.json").write_text(json.dumps(bom))
    done = imgbuild(own, "save", "-t", "cpu", "-o", saved, "--sbom", tmp_path / "bom.json")
    assert done.returncode == 0, done.stderr
    info = json.loads(imgbuild(own, "inspect", saved, "--packages", "--json").stdout)
    assert info["packages"]["python"] == {"numpy": "2.4.0"}
    assert [a["kind"] for a in info["attachments"]] == ["SBOM"]
    (tmp_path / "bom.json").write_text("hello")
    done = imgbuild(own, "save", "-t", "cpu", "-o", saved, "--sbom", tmp_path / "bom.json")
    assert done.returncode == 2
    assert "--sbom: its SBOM is no JSON" in done.stderr


def test_docker_load_reads_it_too(client, saved, published):
    client.api.remove_image(f"{NAME}:cpu", force=True)
    subprocess.run(["docker", "load", "--quiet", "--input", saved], check=True, capture_output=True)
    assert client.images.get(f"{NAME}:cpu").id == published["cpu"]


def test_a_file_that_was_cut_off(client, own, saved):
    client.api.remove_image(f"{NAME}:cpu", force=True)
    whole = saved.read_bytes()
    for part in (len(whole) // 2, len(whole) - 10, 100):
        saved.write_bytes(whole[:part])
        done = imgbuild(own, "load", saved)
        assert done.returncode == 7, done.stderr
        assert "is damaged or cut off" in done.stderr
        assert "nothing of it was given to an engine" in done.stderr
        assert (
            f"rsync --append-verify goes on where a copy stopped (this one has {part} bytes)" in done.stderr
        )
    assert not client.images.list(name=f"{NAME}:cpu")


def test_a_flipped_bit(own, saved):
    raw = bytearray(saved.read_bytes())
    raw[len(raw) // 2] ^= 1
    saved.write_bytes(raw)
    done = imgbuild(own, "load", saved, "--check")
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr


def forget_podman(podman):
    """The image under every name that it got."""
    image = podman.find(f"{NAME}:cpu")
    if image is not None:
        subprocess.run([*podman.command, "rmi", "--force", image.digest], capture_output=True, check=False)


def test_podman_takes_it_in(client, own, saved, tmp_path):
    podman = Podman(os.environ)
    if shutil.which("podman") is None:
        pytest.skip("no podman")
    done = imgbuild(own, "load", saved, "--engine", "podman")
    try:
        assert done.returncode == 0, done.stderr
        assert podman.find(f"{NAME}:cpu").labels["imgbuild.target"] == "cpu"
        again = tmp_path / "podman.tar.zst"
        back = imgbuild(own, "save", "-t", "cpu", "-o", again, "--engine", "podman")
        assert back.returncode == 0, back.stderr
        assert imgbuild(own, "load", again, "--check").returncode == 0
        client.api.remove_image(f"{NAME}:cpu", force=True)
        docker = imgbuild(own, "load", again)
        assert docker.returncode == 0, docker.stderr
        assert client.images.get(f"{NAME}:cpu").labels["imgbuild.target"] == "cpu"
        client.api.remove_image(f"localhost/{NAME}:cpu", force=True)
        info = json.loads(imgbuild(own, "inspect", f"{NAME}:cpu", "--engine", "podman", "--json").stdout)
        assert info["labels"]["imgbuild.target"] == "cpu"
        assert len(info["layers"]) == 3
    finally:
        forget_podman(podman)


def test_podman_pulls(own, where):
    podman = Podman(os.environ)
    if shutil.which("podman") is None:
        pytest.skip("no podman")
    done = pull(own, "--target", "cpu", "--registry", where, "--engine", "podman", "--json")
    try:
        assert done.returncode == 0, done.stderr
        assert podman.find(f"{NAME}:cpu").labels["imgbuild.target"] == "cpu"
        target = load_matrix(ROOT / "images").targets["cpu"]
        image = offers(Reference.parse(where), [target], env=os.environ)[0].image
        assert to_move(image, store(podman).chains()) == 0
    finally:
        forget_podman(podman)


def test_a_disk_without_room(own, saved, tmp_path):
    """Said before a byte is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        done = imgbuild(own, "save", "-t", "cpu", "-o", disk / "x.tar.zst")
        assert done.returncode == 11, done.stderr
        assert "are free in" in done.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_save_and_load_of_nothing(own, tmp_path):
    done = imgbuild(own, "save", f"{NAME}:nothing", "-o", tmp_path / "x.tar.zst")
    assert done.returncode == 3
    assert "imgbuild pull --target nothing" in done.stderr
    assert imgbuild(own, "save", "-o", tmp_path / "x.tar.zst").returncode == 3
    assert imgbuild(own, "save", "x:y", "-t", "cpu", "-o", tmp_path / "x").returncode == 2
    assert imgbuild(own, "load", tmp_path / "nothing").returncode == 2
    (tmp_path / "text").write_text("hello")
    done = imgbuild(own, "load", tmp_path / "text")
    assert done.returncode == 2
    assert "is no archive of imgbuild" in done.stderr


def test_save_of_an_image_whose_blobs_are_not_all_there(own, registry, plans, tmp_path):
    """The engine skipped blobs since it has the same content of another image, and then gives out half an image."""
    path = f"{registry.host}/halves/{NAME}"
    push(f"{path}:h100", tiny(plans["h100"], salt=77), env=os.environ)
    push(f"{path}:ada", tiny(plans["ada"], salt=77, level=1), env=os.environ)
    assert pull(own, "--target", "h100", "--registry", path).returncode == 0
    assert pull(own, "--target", "ada", "--registry", path).returncode == 0
    done = imgbuild(own, "save", "-t", "ada", "-o", tmp_path / "ada.tar.zst")
    assert done.returncode == 5, done.stderr
    assert "never fetched them, since another image brought the same content" in done.stderr
    assert not list(tmp_path.iterdir())
