"""An image's blobs on this machine's disk, and its layers merged as the OCI image specification says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pytest
import zstandard

from imgbuild import verify
from imgbuild.engines.blobs import blob_folder, layer_blobs, members, plain, stored_blobs
from imgbuild.errors import EngineError

PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "two zstd frames": lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]),
}


def tar(*entries):
    """(name, content), (name, None) for a folder, (name, "=target") for a hard link."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content.removeprefix("=")
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


class Store:
    """A content store: blobs in files named after their hashes."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
        self.folder.mkdir(parents=True)

    def put(self, data, kind="application/vnd.oci.image.layer.v1.tar"):
        name = hashlib.sha256(data).hexdigest()
        (self.folder / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}

    def document(self, content):
        return self.put(json.dumps(content).encode(), "application/json")

    def image(self, *layers):
        return self.document(
            {"config": self.document({"os": "linux"}), "layers": [self.put(layer) for layer in layers]}
        )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def layers(tmp_path):
    def write(*contents):
        found = []
        for i, content in enumerate(contents):
            (tmp_path / str(i)).write_bytes(content)
            found.append(tmp_path / str(i))
        return found

    return write


def seen(files):
    """Path → content of what is not covered."""
    found = {}
    for archive, member, covered in members(files):
        if not covered and member.isreg():
            assert member.name not in found
            found[member.name] = archive.extractfile(member).read()
    return found


def test_everything_an_image_consists_of(store):
    image = store.image(tar(("a", b"1")), tar(("b", b"2")))
    missing = {"digest": "sha256:" + "0" * 64}
    index = store.document({"manifests": [image, missing]})
    found = {name: file.read() for name, _, file in stored_blobs(store.folder, index["digest"])}
    assert len(found) == 5
    assert all(name == f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in found.items())


def test_where_the_blobs_lie(store, tmp_path):
    digest = store.image()["digest"]
    assert blob_folder(tmp_path, digest) == store.folder
    assert blob_folder(tmp_path, "sha256:" + "0" * 64) is None
    assert blob_folder(None, digest) is None


def test_where_they_lie_beside_the_systems_containerd(tmp_path):
    folder = tmp_path / "containerd/io.containerd.content.v1.content/blobs/sha256"
    folder.mkdir(parents=True)
    (folder / "abc").write_bytes(b"{}")
    assert blob_folder(tmp_path / "docker", "sha256:abc") == folder


def test_layers_of_an_index_without_its_attestation(store):
    image = store.image(tar(("a", b"1")))
    statement = store.put(b"{}", "application/vnd.in-toto+json")
    attestation = store.document({"layers": [statement]})
    index = store.document({"manifests": [image, attestation, {"digest": "sha256:gone"}]})
    assert [p.read_bytes() for p in layer_blobs(store.folder, index["digest"])] == [tar(("a", b"1"))]


def test_two_platforms_are_nobodys_layers(store):
    index = store.document({"manifests": [store.image(tar(("a", b"1"))), store.image(tar(("a", b"2")))]})
    assert layer_blobs(store.folder, index["digest"]) is None


def test_a_layer_that_is_not_there(store):
    digest = store.document({"layers": [{"digest": "sha256:gone", "mediaType": "x"}]})["digest"]
    assert layer_blobs(store.folder, digest) is None


@pytest.mark.parametrize("packed", PACKED)
def test_however_a_layer_is_packed(layers, packed):
    content = tar(("etc/a", b"x" * 3000))
    (file,) = layers(PACKED[packed](content))
    with file.open("rb") as stream:
        assert plain(stream).read() == content
    assert seen([file]) == {"etc/a": b"x" * 3000}


@pytest.mark.parametrize(
    ("below", "above", "left"),
    [
        ([("d/a", b"1"), ("d/b", b"1")], [("d/a", b"2")], {"d/a": b"2", "d/b": b"1"}),
        ([("d/a", b"1"), ("d/b", b"1")], [("d/.wh.a", b"")], {"d/b": b"1"}),
        ([("d/a", b"1"), ("d/e/f", b"1"), ("g", b"1")], [(".wh.d", b"")], {"g": b"1"}),
        ([("d/a", b"1"), ("d/e/f", b"1")], [("d/.wh..wh..opq", b""), ("d/c", b"2")], {"d/c": b"2"}),
        ([("d/a", b"1"), ("g", b"1")], [("d", b"2")], {"d": b"2", "g": b"1"}),
        ([("d/a", b"1")], [("d", None)], {"d/a": b"1"}),
        ([("./d/a", b"1")], [("d/.wh.a", b"")], {}),
        ([("da", b"1")], [(".wh.d", b"")], {"da": b"1"}),
        ([("a", b"1")], [(".wh..wh..opq", b"")], {}),
    ],
    ids=["replaced", "deleted", "folder", "opaque", "file for folder", "same", "dot", "like", "root"],
)
def test_a_layer_above(layers, below, above, left):
    assert seen(layers(tar(*below), tar(*above))) == left


def test_what_is_deleted_and_made_again(layers):
    assert seen(layers(tar(("a", b"1")), tar((".wh.a", b"")), tar(("a", b"3")))) == {"a": b"3"}


ELF = b"\x7fELF" + bytes(60)  # no library: it is unreadable, and named so


def test_a_hard_link_to_what_is_covered(layers):
    """It leads to the file of its own layer."""
    files = layers(
        tar(("lib/a.so", ELF), ("lib/b.so", "=lib/a.so")),
        tar(("lib/.wh.a.so", b"")),
    )
    content = verify.read_layers(files, say=lambda _: None)
    assert set(content.unreadable) <= {"/lib/b.so"}
    assert "/lib/a.so" not in {**content.unreadable, **content.libraries}


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_a_damaged_layer_is_told(layers, packed):
    whole = PACKED[packed](tar(("lib/a.so", ELF * 400)))
    with pytest.raises(EngineError, match="cannot be read"):
        verify.read_layers(layers(whole[: len(whole) // 3]), say=lambda _: None)
