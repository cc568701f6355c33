"""pull, inspect, size, diff, save and load against a real registry and a real engine, with tiny images."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit import ROOT, imgbuild
from pullkit import Loopback, loopback
from scratch import copy_project
from tinyimages import TinyImage, attach, push

from imgbuild.choice import candidate
from imgbuild.engines.docker import Docker
from imgbuild.engines.podman import Podman
from imgbuild.engines.store import store
from imgbuild.errors import RegistryError, SelectionError
from imgbuild.hardware import Gpu, Hardware
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.pull import decide, fetch, offers, to_move
from imgbuild.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgbuild.plan import Plan

NAME = "imgbuild-e2e-pull"
PATH = "team/comfyui"
ENV = dict(os.environ)
H100 = Hardware(
    gpus=(Gpu(name="NVIDIA H100", uuid="GPU-1", capability="9.0"),), driver="580.95.05", cuda=(13, 0)
)


def text(seed: int, size: int) -> bytes:
    """Bytes that compress, so that levels of gzip differ."""
    return bytes(random.Random(seed).choices(b"abcdef", k=size))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project whose images have another name."""
    folder = tmp_path_factory.mktemp("project")
    return copy_project(Project(root=ROOT, writable=False), folder / "project", image=NAME)


@pytest.fixture(scope="module")
def plans(own: Project) -> dict[str, Plan]:
    matrix = load_matrix(own.images)
    return {n: make_plan(own, matrix, t) for n, t in matrix.targets.items()}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    yield from loopback(tmp_path_factory.mktemp("registry"))


def tiny(plan: Plan, **changes: Any) -> TinyImage:
    """An image of that plan: two layers of packages that targets of a platform share, and one of its own."""
    layers = [
        {"opt/base": text(len(plan.platform), 300_000)},
        {
            "opt/venv/lib/python3.13/site-packages/torch-2.13.0.dist-info/METADATA": b"Name: torch\nVersion: 2.13.0\n\n",
            "opt/torch": text(2, 200_000),
        },
        {"opt/own": text(sum(plan.name.encode()), 100_000)},
    ]
    return replace(TinyImage(layers=layers, labels=plan.labels, platform=plan.platform), **changes)


@pytest.fixture(scope="module")
def published(registry: Loopback, plans: dict[str, Plan]) -> dict[str, str]:
    """Target → digest of its manifest."""
    return {
        n: push(f"{registry.host}/{PATH}:{n}", tiny(p), attested=n == "h100") for n, p in plans.items()
    }


@pytest.fixture
def where(registry: Loopback, published: dict[str, str]) -> str:
    return f"{registry.host}/{PATH}"


@pytest.fixture(autouse=True)
def tidy(client: Any, registry: Loopback) -> Iterator[None]:
    yield
    for image in client.images.list():
        for tag in [*image.tags, *(image.attrs.get("RepoDigests") or ())]:
            if tag.startswith((f"{NAME}:", f"{registry.host}/")):
                client.api.remove_image(tag, force=True)


def pull(own: Project, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return imgbuild(own, "pull", *words, env=env)


# --- pull ----------------------------------------------------------------------------------------


def test_auto_without_a_gpu_says_what_to_do(own, where):
    done = pull(own, "--registry", where)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 3
    assert "--target cpu takes the image that needs none" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gpu_decides(plans, where, published):
    matrix_targets = [t for t in load_matrix(ROOT / "images").targets.values()]
    found = offers(Reference.parse(where), matrix_targets, env=ENV)
    decision = decide(found, H100, "linux/amd64", asked=None, where=Reference.parse(where))
    assert decision.offer.target == "h100"
    assert decision.offer.image.digest == published["h100"]
    assert decision.offer.image.labels == plans["h100"].labels
    reasons = {v.candidate.target: v.why for v in decision.choice.verdicts}
    assert reasons["ada"] == "it is made for 8.9, and NVIDIA H100 is 9.0"
    assert reasons["gb10"] == "it is for linux/arm64, this machine is linux/amd64"


def test_labels_are_read_without_a_layer(registry, where):
    before = registry.fetched(PATH)
    matrix_targets = list(load_matrix(ROOT / "images").targets.values())
    found = offers(Reference.parse(where), matrix_targets, env=ENV)
    layers = {layer.digest for o in found if o.image for layer in o.image.layers}
    assert not layers & set(registry.fetched(PATH)) - set(before)


def test_a_target_that_is_named_is_pulled_by_digest_and_tagged(client, own, where, published):
    done = pull(own, "--target", "cpu", "--registry", where, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["pulled"] == {"name": f"{NAME}:cpu", "digest": published["cpu"], "before": None}
    assert said["reference"] == f"{where}@{published['cpu']}"
    assert client.images.get(f"{NAME}:cpu").id == published["cpu"]


def test_another_machines_image_is_pulled_with_a_warning(client, own, where):
    done = pull(own, "--target", "gb10", "--registry", where)
    assert done.returncode == 0, done.stderr
    assert "warning: gb10 does not run on this machine: it is for linux/arm64" in done.stderr
    assert client.images.get(f"{NAME}:gb10").attrs["Architecture"] == "arm64"


def test_a_dry_run_moves_nothing(client, own, registry, where, published):
    before = registry.fetched(PATH)
    done = pull(own, "--target", "ada", "--registry", where, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert f"would pull {where}@{published['ada']} and tag it {NAME}:ada" in done.stderr
    assert json.loads(done.stdout)["chosen"] == "ada"
    moved = set(registry.fetched(PATH)) - set(before)
    assert len(moved) <= 1  # the configuration
    assert not client.images.list(name=f"{NAME}:ada")


def test_what_is_announced_is_at_least_what_is_fetched(own, registry, plans):
    """Of the second target of a platform only its own layer is new, however its blobs are compressed."""
    path, host = "announced/comfyui", registry.host
    push(f"{host}/{path}:h100", tiny(plans["h100"]))
    push(f"{host}/{path}:ada", tiny(plans["ada"], level=1))  # the same content, other blobs
    engine = store(Docker(ENV))
    targets = [t for n, t in load_matrix(ROOT / "images").targets.items() if n in ("h100", "ada")]
    found = {o.target: o for o in offers(Reference.parse(f"{host}/{path}"), targets, env=ENV)}
    first = found["h100"].image
    assert to_move(first, engine.chains()) == first.size
    fetch(engine, first, f"{NAME}:h100", env=ENV)
    second = found["ada"].image
    announced = to_move(second, engine.chains())
    assert announced == second.layers[-1].size
    before = registry.fetched(path)
    fetch(engine, second, f"{NAME}:ada", env=ENV)
    layers = {layer.digest: layer.size for layer in second.layers}
    after = registry.fetched(path)
    moved = {d: n - before.get(d, 0) for d, n in after.items() if d in layers and n > before.get(d, 0)}
    assert moved == {second.layers[-1].digest: second.layers[-1].size}
    assert to_move(second, engine.chains()) == 0


def test_a_tag_that_moves_says_what_it_was(client, own, registry, plans):
    path = "moving/comfyui"
    old = push(f"{registry.host}/{path}:cpu", tiny(plans["cpu"]))
    words = ("--target", "cpu", "--registry", f"{registry.host}/{path}", "--json")
    assert pull(own, *words).returncode == 0
    again = json.loads(pull(own, *words).stdout)
    assert again["pulled"]["before"] is None
    changed = tiny(plans["cpu"])
    new = push(f"{registry.host}/{path}:cpu", replace(changed, layers=[*changed.layers, {"x": b"1"}]))
    done = pull(own, *words)
    assert json.loads(done.stdout)["pulled"] == {"name": f"{NAME}:cpu", "digest": new, "before": old}


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--registry", "team/comfyui"], 2, "its registry's name first"),
        (["--registry", "{where}:cpu"], 2, "without a tag"),
        (["--registry", "{where}", "--target", "h1000"], 3, "did you mean 'h100'"),
        (["--registry", "{host}/nothing/here", "--target", "cpu"], 3, "the registry has no such tag"),
        (["--registry", "127.0.0.1:1/x", "--target", "cpu"], 9, "the connection was refused"),
    ],
)
def test_bad_input(own, registry, where, words, code, says):
    done = pull(own, *(w.format(where=where, host=registry.host) for w in words))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_without_labels_is_not_chosen(registry, plans):
    path = f"{registry.host}/unlabelled"
    push(f"{path}:h100", tiny(plans["h100"], labels={}))
    targets = [load_matrix(ROOT / "images").targets["h100"]]
    found = offers(Reference.parse(path), targets, env=ENV)
    with pytest.raises(SelectionError, match="no image is made for NVIDIA H100"):
        decide(found, H100, "linux/amd64", asked=None, where=Reference.parse(path))
    assert "no label imgbuild.target" in found[0].candidate.problem


def test_a_target_that_was_never_published(registry, plans):
    path = f"{registry.host}/partly"
    push(f"{path}:cpu", tiny(plans["cpu"]))
    place = Reference.parse(path)
    found = offers(place, list(load_matrix(ROOT / "images").targets.values()), env=ENV)
    with pytest.raises(SelectionError) as raised:
        decide(found, H100, "linux/amd64", asked=None, where=place)
    assert "target h100 is made for it" in raised.value.hint
    assert "imgbuild build --target h100" in raised.value.hint


def test_a_blob_that_is_gone_leaves_the_tag_where_it_was(client, own, registry, plans):
    path = "broken/comfyui"
    old = push(f"{registry.host}/{path}:cpu", tiny(plans["cpu"]))
    words = ("--target", "cpu", "--registry", f"{registry.host}/{path}")
    assert pull(own, *words).returncode == 0
    image = tiny(plans["cpu"])
    lost = replace(image, layers=[*image.layers, {"lost": text(99, 5000)}])
    push(f"{registry.host}/{path}:cpu", lost)
    digests = [d for d in _blob_digests(lost)]
    name = digests[-1].removeprefix("sha256:")
    shutil.rmtree(next(registry.folder.glob(f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}")))
    done = pull(own, *words)
    assert done.returncode == 9, done.stderr
    assert "could not pull" in done.stderr
    assert client.images.get(f"{NAME}:cpu").id == old


def _blob_digests(image: TinyImage) -> list[str]:
    from tinyimages import digest

    return [digest(blob) for _, blob in image.blobs()]


def test_a_signature_is_asked_for_before_anything_is_fetched(client, own, where, tmp_path):
    key = tmp_path / "cosign.pub"
    if shutil.which("cosign"):
        pytest.skip("with cosign, test_publish signs and verifies")
    key.write_text("x")
    done = pull(own, "--target", "cpu", "--registry", where, "--verify-key", str(key))
    assert done.returncode == 5
    assert "cosign" in done.stderr
    assert not client.images.list(name=f"{NAME}:cpu")


def test_docker_that_is_not_there(own, where):
    env = {"DOCKER_HOST": "unix:///nowhere.sock"}
    done = pull(own, "--target", "cpu", "--registry", where, env=env)
    assert done.returncode == 5
    assert "no docker engine answers" in done.stderr
    dry = pull(own, "--target", "cpu", "--registry", where, "--dry-run", env=env)
    assert dry.returncode == 0, dry.stderr


# --- inspect, size, diff -------------------------------------------------------------------------


def test_inspect_of_a_registry_fetches_no_layer(own, registry, where, published):
    before = set(registry.fetched(PATH))
    done = imgbuild(own, "inspect", f"{where}:h100", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["digest"] == published["h100"]
    assert said["place"] == "registry"
    assert {k["name"] for k in said["kernels"]} == {"probe", "sageattention", "flash-attn"}
    assert [a["kind"] for a in said["attachments"]] == ["provenance"]
    assert not {x["diff_id"] for x in said["layers"]} & (set(registry.fetched(PATH)) - before)
    shown = imgbuild(own, "inspect", f"{where}:h100")
    assert "hf_secret" not in shown.stdout
    assert "sm_90a" in shown.stdout


def test_inspect_of_an_engines_image_says_the_same(own, where):
    assert pull(own, "--target", "cpu", "--registry", where).returncode == 0
    remote = json.loads(imgbuild(own, "inspect", f"{where}:cpu", "--json").stdout)
    local = json.loads(imgbuild(own, "inspect", f"{NAME}:cpu", "--json").stdout)
    same = ("digest", "platform", "labels", "environment", "user", "command", "volumes", "kernels")
    assert {k: remote[k] for k in same} == {k: local[k] for k in same}
    assert [x["diff_id"] for x in remote["layers"]] == [x["diff_id"] for x in local["layers"]]
    assert [x["created_by"] for x in remote["layers"]] == [x["created_by"] for x in local["layers"]]


@pytest.mark.parametrize(
    ("reference", "code", "says"),
    [
        ("nothing:here", 3, "docker has no image nothing:here"),
        ("{host}/team/comfyui:h10", 9, "did you mean"),
        ("{host}/no/where:x", 9, "there is no such image"),
        ("./nothing.tar.zst", 3, "has no image"),
        ("{host}/team/comfyui@sha256:12", 2, "is none"),
    ],
)
def test_inspect_of_nothing(own, registry, where, reference, code, says):
    done = imgbuild(own, "inspect", reference.format(host=registry.host))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_size_shows_what_is_shared(own, where):
    said = json.loads(imgbuild(own, "size", f"{where}:h100", f"{where}:ada", "--json").stdout)
    assert said["shared"][0]["layers"] == 2
    first = said["images"][0]
    assert first["stored_bytes"] == sum(x["stored_bytes"] for x in first["layers"])
    assert said["shared"][0]["stored_bytes"] == sum(x["stored_bytes"] for x in first["layers"][:2])
    assert imgbuild(own, "size", f"{where}:h100", f"{where}:ada").returncode == 0


def test_diff_of_two_in_a_registry(own, where, tmp_path):
    page = tmp_path / "diff.html"
    done = imgbuild(own, "diff", f"{where}:h100", f"{where}:ada", "--json", "--html", page)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [p["same"] for p in said["layers"]] == [True, True, False]
    assert {c["name"] for c in said["kernels"]} == {"probe", "sageattention", "flash-attn"}
    assert said["python"] is None  # no SBOM
    assert "no SBOM" in said["a"]["packages_from"]
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    deep = json.loads(imgbuild(own, "diff", f"{where}:h100", f"{where}:ada", "--json", "--deep").stdout)
    assert deep["python"] == []
    assert deep["a"]["packages_from"] == "its layers"
    text_out = imgbuild(own, "diff", f"{where}:h100", f"{where}:ada")
    assert "packages were not compared" in text_out.stderr


def test_packages_of_an_sbom(own, registry, plans):
    path = f"{registry.host}/sbom/comfyui"
    for number, (tag, version) in enumerate([("cpu", "2.4.0"), ("old", "2.3.0")]):
        changed = replace(tiny(plans["cpu"]), labels={**plans["cpu"].labels, "n": str(number)})
        subject = push(f"{path}:{tag}", changed)
        bom = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "components": [
                {"type": "library", "name": "numpy", "purl": f"pkg:pypi/numpy@{version}"},
                {"type": "library", "name": "bash", "purl": "pkg:deb/debian/bash@5.2?arch=amd64"},
            ],
        }
        attach(f"{path}:{tag}", subject, "application/vnd.cyclonedx+json", json.dumps(bom).encode())
    said = json.loads(imgbuild(own, "diff", f"{path}:old", f"{path}:cpu", "--json").stdout)
    assert said["python"] == [{"name": "numpy", "a": "2.3.0", "b": "2.4.0"}]
    assert said["debian"] == []
    info = json.loads(imgbuild(own, "inspect", f"{path}:cpu", "--packages", "--json").stdout)
    assert info["packages"]["python"] == {"numpy": "2.4.0"}
    assert info["packages"]["source"] == "its SBOM (CycloneDX)"


# --- save and load -------------------------------------------------------------------------------


@pytest.fixture
def saved(own: Project, where: str, tmp_path: Path) -> Path:
    assert pull(own, "--target", "cpu", "--registry", where).returncode == 0
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
        assert f"rsync --append-verify goes on where a copy stopped (this one has {part} bytes)" in done.stderr
    assert not client.images.list(name=f"{NAME}:cpu")


def test_a_flipped_bit(own, saved):
    raw = bytearray(saved.read_bytes())
    raw[len(raw) // 2] ^= 1
    saved.write_bytes(raw)
    done = imgbuild(own, "load", saved, "--check")
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr


def test_podman_takes_it_in(own, saved, tmp_path):
    podman = Podman(ENV)
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
        info = json.loads(imgbuild(own, "inspect", f"{NAME}:cpu", "--engine", "podman", "--json").stdout)
        assert info["labels"]["imgbuild.target"] == "cpu"
        assert len(info["layers"]) == 3
    finally:
        subprocess.run([*podman.command, "rmi", "--force", f"localhost/{NAME}:cpu"], capture_output=True)


def test_podman_pulls(own, where):
    podman = Podman(ENV)
    if shutil.which("podman") is None:
        pytest.skip("no podman")
    done = pull(own, "--target", "cpu", "--registry", where, "--engine", "podman", "--json")
    try:
        assert done.returncode == 0, done.stderr
        assert podman.find(f"{NAME}:cpu").labels["imgbuild.target"] == "cpu"
        target = load_matrix(ROOT / "images").targets["cpu"]
        image = offers(Reference.parse(where), [target], env=ENV)[0].image
        assert to_move(image, store(podman).chains()) == 0
    finally:
        subprocess.run([*podman.command, "rmi", "--force", f"localhost/{NAME}:cpu"], capture_output=True)


def test_save_where_nothing_fits(own, where, tmp_path):
    done = imgbuild(own, "save", "-t", "ada", "-o", tmp_path / "x.tar.zst")
    assert done.returncode == 3
    assert "imgbuild pull --target ada" in done.stderr
    assert imgbuild(own, "save", "-o", tmp_path / "x.tar.zst").returncode == 3
    assert imgbuild(own, "save", "x:y", "-t", "cpu", "-o", tmp_path / "x").returncode == 2
    assert imgbuild(own, "load", tmp_path / "nothing").returncode == 2
    (tmp_path / "text").write_text("hello")
    done = imgbuild(own, "load", tmp_path / "text")
    assert done.returncode == 2
    assert "is no archive of imgbuild" in done.stderr


assert RegistryError
assert candidate
