"""The search through an image's layers, on images made of a few bytes: however they are packed, whatever is hidden."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/image"))

import savedlayers  # noqa: E402
from imagecontainers import Engine  # noqa: E402
from savedlayers import Search, search_image  # noqa: E402

# No secret: a pattern in the form of one.
KEY = b"-----BEGIN PRIVATE KEY-----\n" + b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNk\n" * 6
SETTING = b"https://builder:hunter2@index.invalid"


def tar(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def zstd(data):
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    return subprocess.run(["zstd", "--stdout", "--quiet"], input=data, capture_output=True, check=True).stdout


PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzips": lambda d: gzip.compress(d[:700]) + gzip.compress(d[700:]),
    "zstd": zstd,
}


@pytest.fixture
def search():
    return Search({"setting 0 of this machine": SETTING})


def look(tmp_path, search, files):
    """Search an image whose `docker image save` is these files."""
    (tmp_path / "image.tar").write_bytes(tar(files))
    script = tmp_path / "engine"
    script.write_text(f"#!/bin/sh\ncat '{tmp_path}/image.tar'\n")
    script.chmod(0o755)
    search_image(Engine(name="docker", command=(str(script),)), "x", search)
    return sorted(search.found)


@pytest.mark.parametrize("packed", PACKED)
def test_a_layer_however_it_is_packed(tmp_path, search, packed):
    """Two layers: what the second one deletes is found in the first."""
    hidden = tar({"etc/pip.conf": b"index-url = " + SETTING, "usr/share/key.pem": b"x" * 3000 + KEY})
    above = tar({"etc/.wh.pip.conf": b"", "fine": b"nothing" * 100})
    files = {
        "index.json": b"{}",
        "blobs/sha256/1": PACKED[packed](hidden),
        "blobs/sha256/2": PACKED[packed](above),
    }
    assert look(tmp_path, search, files) == [
        ("a password in a package index's address", "/etc/pip.conf"),
        ("a private key", "/usr/share/key.pem"),
        ("setting 0 of this machine", "/etc/pip.conf"),
        ("somebody's settings", "/etc/pip.conf"),
    ]
    assert search.layers == 2


def test_documents_are_searched_too(tmp_path, search):
    config = json.dumps({"history": [{"created_by": f"RUN pip install -i {SETTING.decode()}"}]}).encode()
    assert look(tmp_path, search, {"blobs/sha256/3": config}) == [
        ("setting 0 of this machine", "image: blobs/sha256/3")
    ]


def test_a_word_on_the_border_of_two_pieces(tmp_path, search, monkeypatch):
    monkeypatch.setattr(savedlayers, "_PIECE", 512)
    data = b"x" * (512 - 10) + SETTING + b"y" * 600
    assert look(tmp_path, search, {"layer.tar": tar({"file": data})}) == [
        ("setting 0 of this machine", "/file")
    ]


def test_what_is_public_is_none(tmp_path, search):
    assert look(tmp_path, search, {"layer.tar": tar({"usr/lib/libgnutls.so.30": KEY})}) == []


def test_the_words_are_shown_nowhere(search):
    assert "hunter2" not in repr(search)


def test_an_engine_that_fails_is_told(tmp_path, search):
    with pytest.raises((RuntimeError, tarfile.TarError)):
        search_image(Engine(name="docker", command=("false",)), "x", search)
