from __future__ import annotations

import io
import json
import tarfile

import pytest

from imgbuild.contents import CONSTRAINTS, DPKG, VENV, dpkg_status, merged, normal, of_lists, of_sbom, scan
from imgbuild.errors import EngineError, UnsoundError

SITE = "/opt/venv/lib/python3.13/site-packages"
STATUS = b"""Package: bash
Status: install ok installed
Version: 5.2.37-2+b10

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libc6
Status: install ok installed
Version: 2.41-12
"""


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.lstrip("/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def layer(files):
    return scan(io.BytesIO(tar(files)))


def dist(name, version):
    return {
        f"{SITE}/{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: liar\n".encode()
    }


def test_layers_are_put_on_each_other():
    below = layer({**dist("torch", "2.12.0"), **dist("Typing_Extensions", "4.1"), DPKG: STATUS})
    vendored = f"{SITE}/setuptools/_vendor/wheel-0.45.dist-info/METADATA"
    assert layer({vendored: b"Name: wheel\nVersion: 0.45\n"}).python == {}
    above = layer(
        {
            f"{SITE}/.wh.torch-2.12.0.dist-info": b"",
            **dist("torch", "2.13.0"),
            DPKG: STATUS.replace(b"2.41-12", b"2.41-13"),
        }
    )
    found = merged([below, above], "layers")
    assert found.python == {"torch": "2.13.0", "typing-extensions": "4.1"}
    assert found.debian == {"bash": "5.2.37-2+b10", "libc6": "2.41-13"}


@pytest.mark.parametrize(
    "hidden", ["/opt/venv/lib/.wh..wh..opq", "/opt/.wh.venv", "/.wh.opt", "/.wh..wh..opq"]
)
def test_a_folder_that_a_layer_hides(hidden):
    below = layer({**dist("torch", "2.12.0"), **dist("numpy", "2.0")})
    # The whiteout is for what lies below, even where it comes after the layer's own files.
    above = layer({**dist("numpy", "2.1"), hidden: b""})
    assert merged([below, above], "x").python == {"numpy": "2.1"}


def test_images_without_dpkg_itself():
    found = merged([layer({"/var/lib/dpkg/status.d/base": b"Package: base-files\nVersion: 13\n"})], "x")
    assert found.debian == {"base-files": "13"}


def test_progress_and_sizes():
    seen = []
    raw = tar({"a": b"x" * 1000, "b": b"y" * 10})
    found = scan(io.BytesIO(raw), seen.append)
    assert (found.files, found.bytes) == (2, 1010)
    assert sum(seen) == len(raw)


@pytest.mark.parametrize("cut", [700, 100])
def test_a_layer_that_is_cut_off(cut):
    with pytest.raises(EngineError, match="no whole tar"):
        scan(io.BytesIO(tar({"a": b"x" * 1000})[:cut]))


def test_status_of_dpkg():
    assert dpkg_status(STATUS) == {"bash": "5.2.37-2+b10", "libc6": "2.41-12"}
    assert dpkg_status(b"") == {}
    assert dpkg_status(b"\xff\xfe") == {}


@pytest.mark.parametrize(("name", "same"), [("Flash_Attn", "flash-attn"), ("ruamel.yaml", "ruamel-yaml")])
def test_names(name, same):
    assert normal(name) == same


def reader(files):
    asked = []

    def read(paths):
        asked.extend(paths)
        return {p: files.get(p) for p in paths}

    read.asked = asked
    return read


def test_lists_are_believed_only_where_the_package_is_there():
    files = {
        CONSTRAINTS: b"torch==2.13.0\nnever-installed==1.0\nruamel.yaml==0.18\nflash-attn==2.8.3\n",
        VENV: b"home = /usr/bin\nversion = 3.13\n",
        DPKG: STATUS,
        f"{SITE}/torch-2.13.0.dist-info/METADATA": b"",
        f"{SITE}/ruamel_yaml-0.18.dist-info/METADATA": b"",
        f"{SITE}/flash_attn-2.8.3.dist-info/METADATA": b"",
    }
    found = of_lists(reader(files))
    assert found.python == {"torch": "2.13.0", "ruamel-yaml": "0.18", "flash-attn": "2.8.3"}
    assert found.debian["bash"] == "5.2.37-2+b10"
    assert "3 of 4 pins" in found.source


@pytest.mark.parametrize("missing", [CONSTRAINTS, VENV])
def test_images_without_lists(missing):
    files = {CONSTRAINTS: b"a==1\n", VENV: b"version = 3.13\n"}
    del files[missing]
    assert of_lists(reader(files)) is None


def test_sboms():
    cyclone = {
        "bomFormat": "CycloneDX",
        "components": [
            {"purl": "pkg:pypi/Typing_Extensions@4.1"},
            {"purl": "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19%2Bb1?arch=amd64&distro=debian-13"},
            {"purl": "pkg:generic/comfyui@0.3"},
            {"name": "no purl"},
            7,
        ],
    }
    spdx = {
        "spdxVersion": "SPDX-2.3",
        "packages": [
            {"externalRefs": [{"referenceType": "purl", "referenceLocator": c["purl"]}]}
            for c in cyclone["components"]
            if isinstance(c, dict) and "purl" in c
        ],
    }
    for document, kind in ((cyclone, "CycloneDX"), (spdx, "SPDX")):
        found = of_sbom(json.dumps(document).encode())
        assert found.python == {"typing-extensions": "4.1"}
        assert found.debian == {"libstdc++6": "14.2.0-19+b1"}
        assert kind in found.source


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"[" * 100_000])
def test_what_is_no_sbom(raw):
    with pytest.raises(UnsoundError, match="its SBOM is"):
        of_sbom(raw)


def test_our_own_sbom_is_understood(plans):
    """What publish attaches is what diff reads."""
    from imgbuild.sbom import make_sbom

    plan = plans["h100"]
    raw = make_sbom(plan, "sha256:" + "0" * 64, [("bash", "5.2.37-2+b10", "amd64")])
    found = of_sbom(raw)
    assert found.python["torch"] == "2.13.0"
    kernels = {normal(k.distribution) for k in plan.kernels if k.kind != "path"}
    assert set(found.python) == {normal(name) for name in plan.packages} | kernels
    assert found.work == {normal(name): version for name, version in plan.work_packages.items()}
    assert {"pydantic"} <= found.python.keys() & found.work.keys(), "in both venvs, each with its version"
    assert found.debian == {"bash": "5.2.37-2+b10"}


def test_the_workers_venv_is_apart_from_comfyuis():
    """Two versions of one package, each in its own venv."""
    site = "lib/python3.13/site-packages/pydantic"
    info = {
        f"opt/venv/{site}-2.12.0.dist-info/METADATA": b"Name: pydantic\nVersion: 2.12.0\n\n",
        f"opt/work/{site}-2.14.3.dist-info/METADATA": b"Name: pydantic\nVersion: 2.14.3\n\n",
    }
    found = merged([scan(io.BytesIO(tar(info)))], "layers")
    assert (found.python, found.work) == ({"pydantic": "2.12.0"}, {"pydantic": "2.14.3"})
    lists = {
        "/etc/comfyrun/constraints.txt": b"pydantic==2.12.0\n",
        "/opt/venv/pyvenv.cfg": b"version = 3.13\n",
        "/opt/work/constraints.txt": b"pydantic==2.14.3\nrq==3.0.0\n",
        **{f"/{path}": data for path, data in info.items()},
    }
    listed = of_lists(lambda paths: {p: lists.get(p) for p in paths})
    assert (listed.python, listed.work) == ({"pydantic": "2.12.0"}, {"pydantic": "2.14.3"})
    assert "2 of 3 pins are installed" in listed.source
