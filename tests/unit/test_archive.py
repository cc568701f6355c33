from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pytest
import zstandard

from imgbuild import archive
from imgbuild.errors import ConfigError, EngineError, VerificationError
from imgbuild.manifests import CONFIG, INDEX, MANIFEST


def digest(raw):
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def layout(*, lacking=(), spoiled=None, platform="amd64", layers=(b"layer one" * 1000, b"two" * 10)):
    """A tar as `docker save` gives it out: blobs, then index.json and what else Docker adds."""
    config = json.dumps(
        {
            "architecture": platform,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest(x) for x in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(x), "size": len(x)}
                for x in layers
            ],
        }
    ).encode()
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{"mediaType": MANIFEST, "digest": digest(manifest), "size": len(manifest)}],
        }
    ).encode()
    blobs = {digest(x): x for x in (config, manifest, *layers)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("blobs/sha256")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, (name, raw) in enumerate(sorted(blobs.items())):
            if raw in lacking:
                continue
            content = raw if number != spoiled else raw[:-1] + b"!"
            add(tar, f"blobs/sha256/{name[7:]}", content)
        add(tar, "index.json", index)
        add(tar, "oci-layout", b"{}")
    return buffer.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write(path, raw, **more):
    with path.open("wb") as file:
        return archive.write(
            io.BytesIO(raw),
            file,
            reference="comfyui:h100",
            platform="linux/amd64",
            labels={"imgbuild.target": "h100"},
            made_by="imgbuild 1",
            **more,
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "h100.tar.zst"


def test_there_and_back(path):
    raw, seen = layout(), []
    listing = write(path, raw, sbom=b'{"bomFormat": "CycloneDX"}', progress=seen.append)
    places = []
    checked = archive.check(path, places.append)
    assert checked.listing == listing
    assert checked.listing.labels == {"imgbuild.target": "h100"}
    assert checked.sbom == b'{"bomFormat": "CycloneDX"}'
    assert places[-1] == path.stat().st_size
    name, manifest, config = checked.image()
    assert config.platform == "linux/amd64"
    assert [layer.digest for layer in manifest.layers] == list(config.rootfs.diff_ids)
    assert name in listing.blobs
    # What an engine gets is what an engine gave.
    given = b"".join(archive.pieces(path))
    with tarfile.open(fileobj=io.BytesIO(given)) as back, tarfile.open(fileobj=io.BytesIO(raw)) as first:
        assert back.getnames() == first.getnames()
        for member in first.getmembers():
            if member.isreg():
                assert back.extractfile(member.name).read() == first.extractfile(member).read()


def test_several_threads_write_the_same_content(path):
    write(path, layout(), threads=2)
    assert archive.check(path).listing.blobs


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_cut_off(path, share):
    write(path, layout(layers=(bytes(range(256)) * 4000, b"two")))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(5, int(len(whole) * share))])
    with pytest.raises(VerificationError, match="is damaged or cut off") as raised:
        archive.check(path)
    assert "rsync --append-verify" in raised.value.hint


def test_every_flipped_byte_is_seen(path):
    """Or it was one that says how to unpack, and what is unpacked is the same."""
    write(path, layout())
    whole = path.read_bytes()
    good = b"".join(archive.pieces(path))
    for place in range(5, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            archive.check(path)
        except (VerificationError, ConfigError):
            continue
        assert b"".join(archive.pieces(path)) == good, place


def packed(path, tar):
    path.write_bytes(zstandard.ZstdCompressor().compress(tar))


def test_a_blob_that_was_changed(path, tmp_path):
    """Compressed anew by somebody else: zstd's own checksum is right."""
    write(path, layout())
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())) as raw:
        tar = bytearray(raw.read())
    at = tar.index(b"layer one")
    tar[at] ^= 1
    packed(path, bytes(tar))
    with pytest.raises(VerificationError, match="has other bytes than its digest says"):
        archive.check(path)


def test_a_blob_that_was_taken_out(path):
    write(path, layout())
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())) as raw:
        source = tarfile.open(fileobj=io.BytesIO(raw.read()))  # noqa: SIM115
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, member in enumerate(source.getmembers()):
            if number != 2:
                tar.addfile(member, source.extractfile(member) if member.isreg() else None)
    packed(path, buffer.getvalue())
    with pytest.raises(VerificationError, match="1 of its 4 blobs are missing"):
        archive.check(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"hello, this is text", "not compressed with zstd"), (b"", "not compressed with zstd")],
)
def test_what_is_no_archive(path, content, says):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        archive.check(path)


def test_a_tar_of_something_else(path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "holiday.jpg", b"x")
    packed(path, buffer.getvalue())
    with pytest.raises(ConfigError, match="is no archive of an image"):
        archive.check(path)


def test_what_docker_saved_and_zstd_compressed(path):
    """Without our list nobody can say whether it is whole."""
    packed(path, layout())
    with pytest.raises(VerificationError, match="its end is missing"):
        archive.check(path)


def test_an_archive_of_a_later_version(path, monkeypatch):
    monkeypatch.setattr(archive.Listing.model_fields["schema_version"], "default", 2)
    archive.Listing.model_rebuild(force=True)
    try:
        write(path, layout())
    finally:
        monkeypatch.undo()
        archive.Listing.model_rebuild(force=True)
    with pytest.raises(ConfigError, match="written by a newer imgbuild"):
        archive.check(path)


# --- an engine that gives out less than it should -------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, 9000])
def test_an_engine_that_stops_halfway(path, size):
    with pytest.raises(EngineError, match="did not arrive whole"):
        write(path, layout()[:size])


def test_an_engine_that_gives_out_other_bytes(path):
    with pytest.raises(EngineError, match="other bytes than its digest says"):
        write(path, layout(spoiled=1))


@pytest.mark.parametrize("layer", [b"layer one" * 1000, b"two" * 10])
def test_an_engine_that_never_fetched_a_layer(path, layer):
    with pytest.raises(EngineError, match="1 of its 2 layers") as raised:
        write(path, layout(lacking=(layer,)))
    assert "pull it again" in raised.value.hint


def test_an_engine_of_the_old_kind(path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "manifest.json", b"[]")
    with pytest.raises(EngineError, match="no OCI layout"):
        write(path, buffer.getvalue())
