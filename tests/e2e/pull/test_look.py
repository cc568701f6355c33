"""inspect, size and diff of images in a real registry and a real engine."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from kit import imgbuild
from pullkit import NAME, PATH, fetched, pull, tiny
from tinyimages import attach, push


def test_inspect_of_a_registry_fetches_no_layer(own, registry, where, published):
    registry.clear()
    done = imgbuild(own, "inspect", f"{where}:h100", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["digest"] == published["h100"]
    assert said["place"] == "registry"
    assert {k["name"] for k in said["kernels"]} == {"probe", "sageattention", "flash-attn"}
    assert [a["kind"] for a in said["attachments"]] == ["provenance"]
    assert len(fetched(registry)) == 1  # the configuration
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
        ("{host}/{path}:h10", 9, "did you mean"),
        ("{host}/no/where:x", 9, "there is no such image"),
        ("./nothing.tar.zst", 2, "there is no file ./nothing.tar.zst"),
        ("{host}/{path}@sha256:12", 2, "is none"),
    ],
)
def test_inspect_of_nothing(own, registry, where, reference, code, says):
    done = imgbuild(own, "inspect", reference.format(host=registry.host, path=PATH))
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
        subject = push(f"{path}:{tag}", changed, env=os.environ)
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
