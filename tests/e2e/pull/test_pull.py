"""pull against a real registry and a real engine, with tiny images: what is chosen, fetched and tagged, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from conftest import forget
from faultproxy import dies, flipped, hangs_up, status
from kit import ROOT, imgbuild
from pullkit import NAME, PATH, fetched, pull, tiny
from registries import client_env, make_certificate, real_registry
from tinyimages import digest as digest_of
from tinyimages import push

from imgbuild.cosign import sign
from imgbuild.engines.docker import Docker
from imgbuild.engines.store import store
from imgbuild.errors import SelectionError
from imgbuild.hardware import Gpu, Hardware
from imgbuild.matrix import load_matrix
from imgbuild.pull import decide, fetch, offers, to_move
from imgbuild.reference import Reference

H100 = Hardware(
    gpus=(Gpu(name="NVIDIA H100", uuid="GPU-1", capability="9.0"),), driver="580.95.05", cuda=(13, 0)
)


def test_auto_without_a_gpu_says_what_to_do(own, where):
    done = pull(own, "--registry", where)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 3
    assert "--target cpu takes the image that needs none" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gpu_decides(plans, where, published):
    matrix_targets = list(load_matrix(ROOT / "images").targets.values())
    found = offers(Reference.parse(where), matrix_targets, env=os.environ)
    decision = decide(found, H100, "linux/amd64", asked=None, where=Reference.parse(where))
    assert decision.offer.target == "h100"
    assert decision.offer.image.digest == published["h100"]
    assert decision.offer.image.labels == plans["h100"].labels
    reasons = {v.candidate.target: v.why for v in decision.choice.verdicts}
    assert reasons["ada"] == "it is made for 8.9, and NVIDIA H100 is 9.0"
    assert reasons["gb10"] == "it is for linux/arm64, this machine is linux/amd64"


def test_labels_are_read_without_a_layer(registry, where):
    registry.clear()
    matrix_targets = list(load_matrix(ROOT / "images").targets.values())
    found = offers(Reference.parse(where), matrix_targets, env=os.environ)
    assert fetched(registry) == {o.image.config_digest for o in found if o.image}


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
    registry.clear()
    done = pull(own, "--target", "ada", "--registry", where, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert f"would pull {where}@{published['ada']} and tag it {NAME}:ada" in done.stderr
    assert json.loads(done.stdout)["chosen"] == "ada"
    assert len(fetched(registry)) == 1  # the configuration
    assert not client.images.list(name=f"{NAME}:ada")


@pytest.mark.parametrize("level", [6, 1])
def test_what_is_announced_is_what_is_fetched(own, registry, plans, level):
    """Of the second target of a platform only its own layer is new, even where its blobs are compressed otherwise."""
    path = f"{registry.host}/announced{level}/{NAME}"
    push(f"{path}:h100", tiny(plans["h100"], salt=level), env=os.environ)
    push(f"{path}:ada", tiny(plans["ada"], salt=level, level=level), env=os.environ)
    engine = store(Docker(os.environ))
    targets = [t for n, t in load_matrix(ROOT / "images").targets.items() if n in ("h100", "ada")]
    found = {o.target: o.image for o in offers(Reference.parse(path), targets, env=os.environ)}
    assert to_move(found["h100"], engine.chains()) == found["h100"].size
    fetch(engine, found["h100"], f"{NAME}:h100", env=os.environ)
    layers = {layer.digest: layer.size for layer in found["ada"].layers}
    announced = to_move(found["ada"], engine.chains())
    registry.clear()
    fetch(engine, found["ada"], f"{NAME}:ada", env=os.environ)
    assert announced == sum(layers[d] for d in fetched(registry) & set(layers))
    assert announced == found["ada"].layers[-1].size


def test_a_tag_that_moves_says_what_it_was(client, own, registry, plans):
    path = f"moving/{NAME}"
    old = push(f"{registry.host}/{path}:cpu", tiny(plans["cpu"]), env=os.environ)
    words = ("--target", "cpu", "--registry", f"{registry.host}/{path}", "--json")
    assert pull(own, *words).returncode == 0
    again = json.loads(pull(own, *words).stdout)
    assert again["pulled"]["before"] is None
    changed = tiny(plans["cpu"])
    new = push(
        f"{registry.host}/{path}:cpu", replace(changed, layers=[*changed.layers, {"x": b"1"}]), env=os.environ
    )
    done = pull(own, *words)
    assert json.loads(done.stdout)["pulled"] == {"name": f"{NAME}:cpu", "digest": new, "before": old}


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--registry", "team/comfyui"], 2, "no place in a registry"),
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
    path = f"{registry.host}/unlabelled/{NAME}"
    push(f"{path}:h100", tiny(plans["h100"], labels={}), env=os.environ)
    targets = [load_matrix(ROOT / "images").targets["h100"]]
    found = offers(Reference.parse(path), targets, env=os.environ)
    with pytest.raises(SelectionError, match="no image is made for NVIDIA H100"):
        decide(found, H100, "linux/amd64", asked=None, where=Reference.parse(path))
    assert "no label imgbuild.target" in found[0].candidate.problem


def test_a_target_that_was_never_published(registry, plans):
    path = f"{registry.host}/partly/{NAME}"
    push(f"{path}:cpu", tiny(plans["cpu"]), env=os.environ)
    place = Reference.parse(path)
    found = offers(place, list(load_matrix(ROOT / "images").targets.values()), env=os.environ)
    with pytest.raises(SelectionError) as raised:
        decide(found, H100, "linux/amd64", asked=None, where=place)
    assert "target h100 is made for it" in raised.value.hint
    assert "imgbuild build --target h100" in raised.value.hint


_LAYER = "/blobs/"


@pytest.mark.parametrize(
    ("fault", "method", "path", "says"),
    [
        (status(401), "GET|HEAD", "/manifests/", "docker login"),
        (status(403), "GET|HEAD", "/manifests/", "forbids it"),
        (status(429), "GET|HEAD", "/manifests/", "takes no more requests"),
        (status(500), "GET|HEAD", "/manifests/", "failed"),
        (flipped(5), "GET", "/manifests/", "its manifest is not what its digest says"),
        (flipped(5), "GET", "/blobs/", "has other bytes than its digest says"),
        (hangs_up(), "GET|HEAD", "/manifests/", "broke the connection"),
    ],
    ids=["401", "403", "429", "500", "manifest", "configuration", "gone"],
)
def test_faults_before_anything_is_fetched(client, own, registry, where, fault, method, path, says):
    """None of them costs the tag that is here, and none ends in a traceback."""
    assert pull(own, "--target", "cpu", "--registry", where).returncode == 0
    before = client.images.get(f"{NAME}:cpu").id
    registry.inject(fault, method=method, path=path)
    try:
        done = pull(own, "--target", "cpu", "--registry", where)
    finally:
        registry.clear()
    assert done.returncode in (3, 9), done.stderr
    assert says in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert client.images.get(f"{NAME}:cpu").id == before


@pytest.mark.parametrize("fault", [status(404), flipped(30), dies()], ids=["missing", "wrong bytes", "gone"])
def test_faults_while_the_engine_fetches(client, own, registry, plans, fault):
    path = f"{registry.host}/broken/{NAME}"
    old = push(f"{path}:cpu", tiny(plans["cpu"]), env=os.environ)
    words = ("--target", "cpu", "--registry", path)
    assert pull(own, *words).returncode == 0
    image = tiny(plans["cpu"])
    push(f"{path}:cpu", replace(image, layers=[*image.layers, {"new": os.urandom(5000)}]), env=os.environ)
    new = offers(Reference.parse(path), [load_matrix(ROOT / "images").targets["cpu"]], env=os.environ)[
        0
    ].image
    registry.inject(fault, method="GET", path=new.layers[-1].digest)
    try:
        done = pull(own, *words)
    finally:
        registry.clear()
    assert done.returncode == 9, done.stderr
    assert "could not pull" in done.stderr
    assert "the same command goes on from there" in done.stderr
    assert client.images.get(f"{NAME}:cpu").id == old
    assert pull(own, *words).returncode == 0
    assert client.images.get(f"{NAME}:cpu").id == new.digest


def test_a_password_over_tls(client, own, plans, tmp_path):
    certificate = make_certificate(tmp_path / "tls")
    with real_registry(tmp_path / "registry", certificate=certificate, password=True) as registry:
        good = client_env(tmp_path / "good", registry.host, certificate=certificate)
        push(f"{registry.host}/{PATH}:cpu", tiny(plans["cpu"]), good)
        words = ("--target", "cpu", "--registry", f"{registry.host}/{PATH}")
        try:
            done = pull(own, *words, env=good)
            assert done.returncode == 0, done.stderr
            wrong = client_env(tmp_path / "wrong", registry.host, certificate=certificate, password="no")
            done = pull(own, *words, env=wrong)
            assert done.returncode == 9, done.stderr
            assert f"docker login {registry.host}" in done.stderr
            stranger = pull(own, *words, env=client_env(tmp_path / "stranger", registry.host))
            assert stranger.returncode == 9, stranger.stderr
            assert "certificate that is not trusted here" in stranger.stderr
        finally:
            forget(client, registry.host)


def test_a_signature_is_asked_for_before_anything_is_fetched(client, own, registry, plans, tmp_path):
    if shutil.which("cosign") is None:
        pytest.skip("no cosign: apt-get install -t trixie cosign")
    env = {**os.environ, "COSIGN_PASSWORD": "x"}
    for name in ("mine", "theirs"):
        words = ["cosign", "generate-key-pair", "--output-key-prefix", str(tmp_path / name)]
        subprocess.run(words, env=env, check=True, capture_output=True)
    path = f"{registry.host}/signed/{NAME}"
    digest = push(f"{path}:cpu", tiny(plans["cpu"], salt=5), env=os.environ)
    words = ("--target", "cpu", "--registry", path, "--verify-key")
    registry.clear()
    done = pull(own, *words, str(tmp_path / "mine.pub"))
    assert done.returncode == 7, done.stderr
    assert "is not signed" in done.stderr
    sign((Reference.parse(path).at(digest),), str(tmp_path / "mine.key"), env)
    wrong = pull(own, *words, str(tmp_path / "theirs.pub"))
    assert wrong.returncode == 7, wrong.stderr
    assert "is not signed by" in wrong.stderr
    assert not client.images.list(name=f"{NAME}:cpu")
    layers = {digest_of(blob) for _, blob in tiny(plans["cpu"], salt=5).blobs()}
    assert not fetched(registry) & layers
    right = pull(own, *words, str(tmp_path / "mine.pub"))
    assert right.returncode == 0, right.stderr
    assert f"{path}@{digest} is signed by" in right.stderr
    assert client.images.get(f"{NAME}:cpu").id == digest
    attached = json.loads(imgbuild(own, "inspect", f"{path}:cpu", "--json").stdout)["attachments"]
    assert [a["kind"] for a in attached] == ["signature"]


def test_docker_that_is_not_there(own, where):
    env = {**os.environ, "DOCKER_HOST": "unix:///nowhere.sock"}
    done = pull(own, "--target", "cpu", "--registry", where, env=env)
    assert done.returncode == 5
    assert "no docker engine answers" in done.stderr
    dry = pull(own, "--target", "cpu", "--registry", where, "--dry-run", env=env)
    assert dry.returncode == 0, dry.stderr
