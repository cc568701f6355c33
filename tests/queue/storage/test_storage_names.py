"""No name leads out of a storage's tree, and no two things get one name: for any text."""

from __future__ import annotations

import posixpath
import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfywork.errors import ConfigError
from comfywork.storage import Place, disposition, media, names, output_name

# Text that looks like keys more often than chance would have it.
PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "\0",
    "acme",
    "inputs",
    ".staging",
    "9_0.png",
    "A",
    "%2e",
    "﹒",
    "-",
    "_",
    "\n",
    "é",
    " ",
]
HOSTILE = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from([*PIECES, str(uuid.UUID(int=7)), "0123456789abcdef-x.png"]), max_size=9).map(
        "".join
    ),
    st.lists(st.sampled_from([*PIECES, str(uuid.UUID(int=7))]), max_size=5).map("/".join),
)


@given(HOSTILE)
def test_a_key_is_one_path_below_the_root_or_refused(key: str) -> None:
    try:
        names.check_key(key)
    except ConfigError:
        assert not names.is_key(key)
        return
    assert key == posixpath.normpath(key) == key.lower() == unicodedata.normalize("NFKD", key)
    assert key.isascii()
    assert key.isprintable()
    assert len(key.split("/")) == 3
    assert not any(part.startswith(".") for part in key.split("/"))


@given(HOSTILE, HOSTILE, st.integers(-5, 1 << 70), HOSTILE)
def test_a_place_is_in_its_own_folder_or_refused(tenant: str, job: str, token: int, name: str) -> None:
    try:
        place = Place(tenant=tenant, job=job, token=token, name=name)
    except ConfigError:
        return
    assert names.is_key(place.key)
    assert place.staged == f".staging/{tenant}/{job}/{token}/{name}"


@pytest.mark.parametrize(
    "job", ["inputs", "A" * 36, str(uuid.UUID(int=0xABC)).upper(), f"{{{uuid.UUID(int=1)}}}", "1" * 32]
)
def test_a_job_has_one_spelling(job: str) -> None:
    with pytest.raises(ConfigError):
        Place(tenant="acme", job=job, token=1, name="9_0.png")


@given(HOSTILE, st.integers(0, 99_999), HOSTILE)
def test_every_node_has_an_output_name(node: str, number: int, filename: str) -> None:
    assert names.check_output(output_name(node, number, filename)) == output_name(node, number, filename)


@given(
    st.lists(
        st.one_of(st.text(max_size=6), HOSTILE, st.from_regex(r"[a-zA-Z0-9:-]{1,5}")),
        unique=True,
        max_size=20,
    )
)
def test_no_two_nodes_share_one(nodes: list[str]) -> None:
    assert len({output_name(node, 0, "x.png") for node in nodes}) == len(nodes)


@pytest.mark.parametrize(
    ("node", "filename", "expected"),
    [
        ("9", "ComfyUI_00001_.png", "9_3.png"),
        ("57:12", "a.WEBP", "57-12_3.webp"),
        ("9", "archive.tar.gz", "9_3.gz"),
        ("9", "none", "9_3.bin"),
        ("9", "x.p/../n", "9_3.bin"),
    ],
)
def test_names_of_outputs(node: str, filename: str, expected: str) -> None:
    assert output_name(node, 3, filename) == expected


@given(HOSTILE)
def test_an_input_gets_a_name_or_is_refused(name: str) -> None:
    try:
        key = names.input_key("acme", "0" * 64, name)
    except ConfigError:
        return
    assert names.is_key(key)
    assert names.job_of(key) is None


@given(st.binary(max_size=100), HOSTILE)
def test_nothing_that_a_browser_runs_is_shown_in_place(head: bytes, name: str) -> None:
    found = media.decide(head, name)
    assert found not in (
        "text/html",
        "image/svg+xml",
        "application/xhtml+xml",
        "text/xml",
        "application/javascript",
    )
    assert not media.inline(found) or media.sniff(head) == found


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x20ftypisom", "video/mp4"),
        (b"\x1a\x45\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f\x42\x86\x81\x01\x42\x82\x84webm", "video/webm"),
        (b"fLaC\x00", "audio/flac"),
        (b"RIFF\x00\x00\x00\x00WAVE", "audio/wav"),
        (b"<svg ", None),
        (b"", None),
    ],
)
def test_what_it_is_by_its_first_bytes(head: bytes, expected: str | None) -> None:
    assert media.sniff(head) == expected
    assert disposition(expected or media.UNKNOWN, "x").startswith("inline" if expected else "attachment")
