from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from fatbins.synthetic import (
    AARCH64,
    ALLOC,
    COMPRESSED,
    ELF,
    EXEC,
    IR,
    LZ4,
    NOBITS,
    PROGBITS,
    PTX,
    ZSTD,
    A,
    F,
    container,
    elf,
    entry,
    library,
    wheel,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgbuild import fatbin
from imgbuild.fatbin import Code, FatbinError, read_elf, read_file, runs, verdict

FIXTURES = Path(__file__).with_name("fatbins")
REAL = [FIXTURES / name for name in ("mixed.so", "exact.so", "linked.so")]


def pairs(codes):
    return [(c.kind, c.arch) for c in codes]


# --- compatibility -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "kind", "capability", "answer"),
    [
        # Plain code: its own major, from its own minor on.
        ("sm_80", "elf", "8.0", "yes"),
        ("sm_80", "elf", "8.9", "yes"),
        ("sm_89", "elf", "8.6", "no"),
        ("sm_80", "elf", "9.0", "no"),
        ("sm_90", "elf", "8.9", "no"),
        ("sm_120", "elf", "12.0", "yes"),
        ("sm_120", "elf", "12.1", "yes"),
        ("sm_121", "elf", "12.0", "no"),
        ("sm_100", "elf", "10.3", "yes"),
        ("sm_100", "elf", "12.0", "no"),
        ("sm_100", "elf", "1.0", "no"),
        ("sm_12", "elf", "12.1", "no"),
        # `a`: exactly one capability.
        ("sm_90a", "elf", "9.0", "yes"),
        ("sm_120a", "elf", "12.0", "yes"),
        ("sm_120a", "elf", "12.1", "no"),
        ("sm_121a", "elf", "12.1", "yes"),
        ("sm_121a", "elf", "12.0", "no"),
        ("sm_100a", "elf", "10.3", "no"),
        # `f`: the family, from its own minor on; there is none below 10.
        ("sm_120f", "elf", "12.0", "yes"),
        ("sm_120f", "elf", "12.1", "yes"),
        ("sm_121f", "elf", "12.0", "no"),
        ("sm_121f", "elf", "12.1", "yes"),
        ("sm_100f", "elf", "10.0", "yes"),
        ("sm_100f", "elf", "10.3", "yes"),
        ("sm_103f", "elf", "10.0", "no"),
        ("sm_100f", "elf", "11.0", "no"),
        ("sm_100f", "elf", "12.0", "no"),
        ("sm_110f", "elf", "11.0", "yes"),
        ("sm_90f", "elf", "9.0", "no"),
        # PTX is compiled for everything newer, unless its suffix forbids.
        ("compute_80", "ptx", "8.0", "jit"),
        ("compute_80", "ptx", "12.1", "jit"),
        ("compute_90", "ptx", "8.9", "no"),
        ("compute_121", "ptx", "12.0", "no"),
        ("compute_90a", "ptx", "9.0", "jit"),
        ("compute_90a", "ptx", "10.0", "no"),
        ("compute_120f", "ptx", "12.1", "jit"),
        ("compute_100f", "ptx", "12.1", "no"),
        # Everything else needs a linker first.
        ("lto_80", "ir", "8.0", "no"),
        ("sm_121a", "rel-elf", "12.1", "no"),
        ("compute_80", "rel-ptx", "12.1", "no"),
        ("sm_121", "kind-16", "12.1", "no"),
    ],
)
def test_what_runs_where(arch, kind, capability, answer):
    assert runs(arch, capability, kind) == answer


@pytest.mark.parametrize("capability", ["12", "sm_121", "12.1a", "", "12.10", "-1.0", "１２.１", "12.1\n"])
def test_capability_in_another_spelling(capability):
    with pytest.raises(FatbinError, match=r"write it as 12\.1"):
        runs("sm_80", capability, "elf")


@pytest.mark.parametrize("arch", ["80", "sm80", "sm_", "sm_80b", "sm_80\n", "none"])
def test_no_architecture(arch):
    with pytest.raises(FatbinError, match="no architecture"):
        runs(arch, "8.0", "elf")


@pytest.mark.parametrize(
    ("archs", "answer"),
    [
        ([], "none"),
        (["sm_80", "sm_120"], "yes"),
        (["sm_80", "compute_80"], "jit"),
        (["compute_80", "sm_121a"], "yes"),
        (["sm_120a", "sm_90", "compute_90a"], "no"),
    ],
)
def test_verdict_is_the_best_of_all(archs, answer):
    codes = [Code("ptx" if a.startswith("compute") else "elf", a, 1, 1) for a in archs]
    assert verdict(codes, "12.1") == answer


# --- reading -------------------------------------------------------------------------------------


def test_kinds_suffixes_and_sizes():
    data = elf(
        (
            ".nv_fatbin",
            container(
                entry(ELF, 80, size=24),
                entry(ELF, 121, A | ZSTD, size=16, packed=13, unpacked=5000, header=112),
                entry(ELF, 120, F | LZ4, size=16, packed=16, unpacked=70, header=96),
                entry(PTX, 90, A, size=40, header=80),
                entry(IR, 75, ZSTD, size=8, packed=7, unpacked=9, header=128),
                entry(ELF, 90, A | F),
                entry(0x10, 100),
                entry(0x80, 100),
            ),
        )
    )
    assert read_elf(data) == (
        Code("elf", "sm_80", 24, 24),
        Code("elf", "sm_121a", 13, 5000),
        Code("elf", "sm_120f", 16, 70),
        Code("ptx", "compute_90a", 40, 40),
        Code("ir", "lto_75", 7, 9),
        Code("elf", "sm_90a", 8, 8),
        Code("kind-16", "sm_100", 8, 8),
        Code("tile-ir", "sm_100", 8, 8),
    )


def test_containers_follow_one_another_with_padding():
    row = container(entry(ELF, 80)) + bytes(240) + container() + container(entry(ELF, 90), entry(ELF, 120))
    data = elf((".nv_fatbin", row + bytes(64)), ("other", b"x"), (".nv_fatbin", container(entry(PTX, 80))))
    found = list(fatbin.read_containers(data))
    assert [pairs(c.codes) for c in found] == [
        [("elf", "sm_80")],
        [],
        [("elf", "sm_90"), ("elf", "sm_120")],
        [("ptx", "compute_80")],
    ]


def test_relocatable_code_is_another_kind():
    both = container(entry(ELF, 89), entry(PTX, 89), entry(0x40, 89), entry(IR, 89))
    data = elf(("__nv_relfatbin", both), (".nv_fatbin", container(entry(ELF, 80))))
    assert pairs(read_elf(data)) == [
        ("rel-elf", "sm_89"),
        ("rel-ptx", "compute_89"),
        ("rel-ptx", "compute_89"),
        ("rel-ir", "lto_89"),
        ("elf", "sm_80"),
    ]
    assert verdict(read_elf(elf(("__nv_relfatbin", both))), "8.9") == "no"


def test_containers_in_data_sections_are_found():
    """As in cuFFT, whose .nv_fatbin alone would say that it runs on nothing new."""
    hidden = (
        b"PQRS" * 2 + container(entry(ELF, 120)) + b"text" + b"\x50\xed\x55\xba" + container(entry(PTX, 75))
    )
    data = elf((".nv_fatbin", container(entry(ELF, 75))), (".data", hidden))
    assert pairs(read_elf(data)) == [("elf", "sm_75"), ("elf", "sm_120"), ("ptx", "compute_75")]
    assert pairs(read_elf(data, embedded=False)) == [("elf", "sm_75")]


@pytest.mark.parametrize(
    "content",
    [
        b"\x50\xed\x55\xba",  # a program that knows the magic number
        b"\x50\xed\x55\xba\x01\x00\x10\x00" + bytes(8)[:7],
        container(entry(ELF, 80))[:-1],
        container(entry(ELF, 80), version=2),
        container(entry(ELF, 80, version=0x102)),
        container(entry(ELF, 80), bytes(8)),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 63) + bytes(64),
    ],
)
def test_what_looks_like_a_container_in_a_data_section_is_none(content):
    assert read_elf(elf((".rodata", content))) == ()


def test_sections_that_are_not_looked_into():
    hidden = container(entry(ELF, 80))
    data = elf(
        (".text", hidden, PROGBITS, ALLOC | EXEC),
        (".debug", hidden, PROGBITS, 0),
        (".nv_fatbin", hidden, NOBITS, ALLOC),  # as objcopy --only-keep-debug leaves it
    )
    assert read_elf(data) == ()


def test_more_sections_than_fit_the_header():
    assert pairs(read_elf(elf((".nv_fatbin", container(entry(ELF, 80))), many=True))) == [("elf", "sm_80")]


def test_what_nvcc_made():
    """made by fatbins/make.sh."""
    mixed, exact, linked = (read_file(path)[path.name] for path in REAL)
    both = Counter({("elf", a): 2 for a in ("sm_80", "sm_90a", "sm_120f", "sm_121a")})
    both["ptx", "compute_80"] = 2
    assert Counter(pairs(mixed)) == both
    assert all(c.size < c.unpacked for c in mixed)  # compressed
    assert pairs(exact) == [("elf", "sm_121a")]
    assert all(c.size == c.unpacked for c in exact)
    assert Counter(pairs(linked)) == {
        ("elf", "sm_89"): 1,
        ("rel-elf", "sm_89"): 2,
        ("rel-ptx", "compute_89"): 2,
    }
    assert [verdict(mixed, c) for c in ("8.9", "9.0", "12.0", "12.1", "10.0", "7.5")] == [
        "yes", "yes", "yes", "yes", "jit", "no",
    ]  # fmt: skip
    assert [verdict(linked, c) for c in ("8.9", "9.0")] == ["yes", "no"]


# --- damaged and hostile files -------------------------------------------------------------------


def patched(data, at, text):
    return data[:at] + text + data[at + len(text) :]


GOOD = library(80)
STRICT = ".nv_fatbin"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no ELF file"),
        (b"\x7fEL", "is no ELF file"),
        (b"\x7fELF", "truncated ELF file"),
        (GOOD[:63], "truncated ELF file"),
        (patched(GOOD, 4, b"\1"), "not a 64-bit little-endian one"),
        (patched(GOOD, 5, b"\2"), "not a 64-bit little-endian one"),
        (patched(GOOD, 40, bytes(8)), "no section headers"),
        (patched(GOOD, 40, b"\xff" * 8), "behind its end"),
        (patched(GOOD, 58, b"\x28\0"), "its section headers have 40 bytes"),
        (patched(GOOD, 60, b"\xf0\xff"), "behind its end"),
        (patched(GOOD, 60, bytes(2)), "of its 0 sections"),
        (patched(GOOD, 62, b"\xf0\0"), "number 240 is to hold the names"),
        (GOOD[:-1], "behind its end"),
        (elf((STRICT, container(entry(ELF, 80))[:-8])), "a container is cut off"),
        (elf((STRICT, container(entry(ELF, 80))[:12])), "a container's header is cut off"),
        (elf((STRICT, container() + b"junk")), "a container's header is cut off"),
        (elf((STRICT, container() + b"junk" * 4)), "here begins no container"),
        (elf((STRICT, container(version=2))), "version 2 with a header of 16 bytes is unknown"),
        (elf((STRICT, container(header=24))), "version 1 with a header of 24 bytes is unknown"),
        (elf((STRICT, container(bytes(63)))), "an entry's header is cut off"),
        (elf((STRICT, container(entry(version=0x102)))), "an entry of version 0x102 is unknown"),
        (elf((STRICT, container(patched(entry(), 4, bytes(4))))), "an entry has a header of 0 bytes"),
        (elf((STRICT, container(patched(entry(), 4, b"\xff" * 4)))), "an entry is cut off"),
        (elf((STRICT, container(patched(entry(), 8, b"\xff" * 8)))), "an entry is cut off"),
        (elf((STRICT, container(entry(size=8, packed=9)))), "two sizes contradict"),
        (elf((STRICT, container(), PROGBITS, ALLOC | COMPRESSED)), "is compressed"),
    ],
)
def test_damage_is_told(data, says):
    with pytest.raises(FatbinError, match=re.escape(says)):
        read_elf(data)


def test_section_behind_the_end():
    data = elf((".nv_fatbin", container()), (".bss\x1b[2J", b"12345678"))
    at = len(data) - 128 + 32  # the last but one section's size
    with pytest.raises(FatbinError, match=r"section \.bss\?\[2J ends at byte"):
        read_elf(patched(data, at, struct.pack("<Q", 1 << 40)))


def test_names_behind_the_end():
    with pytest.raises(FatbinError, match="the names of its sections lie behind its end"):
        read_elf(patched(GOOD, len(GOOD) - 64 + 24, struct.pack("<Q", 1 << 62)))
    with pytest.raises(FatbinError, match="a section has no name"):
        read_elf(patched(GOOD, len(GOOD) - 128, struct.pack("<I", 1 << 30)))


@pytest.mark.parametrize(
    "section",
    [
        (".nv_fatbin", container() * 5000),
        (".nv_fatbin", container(*[entry(size=0)] * 5000)),
        (".data", b"\x50\xed\x55\xba" * 5000),
        # Each of the first claims the whole rest and fails at its end only: a square of work.
        (".data", b"".join(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 14) for _ in range(5000))),
    ],
)
def test_work_is_bounded(section):
    with pytest.raises(FatbinError, match="claims to hold more than"):
        list(fatbin.read_containers(elf(section), budget=fatbin._Budget(4000)))


def test_sections_on_top_of_each_other():
    """Sixty thousand sections over the same bytes must not be sixty thousand times the work."""
    big = bytes(1 << 20)
    data = bytearray(elf(("pad", big)))
    count, names = 60000, 1
    for name, says in ((".nv_fatbin", "overlap"), (".data", None)):
        text = b"\0" + name.encode() + b"\0"
        table = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, len(data), len(text), 0, 0, 1, 0)
        one = struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, 1 << 20, 0, 0, 8, 0)
        hostile = bytes(data) + text + bytes(64) + table + one * count
        hostile = patched(hostile, 40, struct.pack("<Q", len(data) + len(text)))
        hostile = patched(hostile, 60, struct.pack("<HH", count + 2, names))
        begun = time.monotonic()
        if says:
            with pytest.raises(FatbinError, match=says):
                read_elf(hostile)
        else:
            assert read_elf(hostile) == ()
        assert time.monotonic() - begun < 10


@pytest.fixture(scope="module")
def real():
    return [path.read_bytes() for path in REAL]


def read_all(data):
    """Everything that may be done with a file's bytes; only FatbinError may come of it."""
    begun = time.monotonic()
    try:
        found = fatbin.read_library("x", data)
        fatbin.complaint(found, capability="12.1", code=["sm_121a"])
        fatbin.summary(found.codes)
    except FatbinError as e:
        assert str(e).isprintable()
        found = None
    assert time.monotonic() - begun < 2
    return found


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(which=st.integers(0, 2), share=st.floats(0, 1))
def test_truncated_anywhere(real, which, share):
    data = real[which]
    assert read_all(data[: int(len(data) * share * 0.9999)]) is None  # the headers are at the end


@FUZZ
@given(
    which=st.integers(0, 2), flips=st.lists(st.tuples(st.floats(0, 0.99999), st.integers(0, 7)), min_size=1)
)
def test_bits_flipped_anywhere(real, which, flips):
    data = bytearray(real[which])
    for share, bit in flips:
        data[int(len(data) * share)] ^= 1 << bit
    read_all(bytes(data))


def interesting(data):
    """Where headers are: the file's own, the sections', the containers' and their entries'."""
    (table,) = struct.unpack_from("<Q", data, 40)
    starts = [0, 16, 32, 48]
    starts += range(table, len(data) - 15, 16)
    for found in re.finditer(re.escape(fatbin.MAGIC), data):
        starts += range(found.start(), found.start() + 80, 16)
    return starts


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1]),
    st.integers(0, 30000),
    st.integers(0, (1 << 64) - 1),
)


@FUZZ
@given(which=st.integers(0, 2), data=st.data())
def test_numbers_in_headers_are_anything(real, which, data):
    raw = bytearray(real[which])
    places = interesting(real[which])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(places)) + data.draw(st.sampled_from([0, 2, 4, 8, 12]))
        width = data.draw(st.sampled_from([2, 4, 8]))
        number = data.draw(NUMBERS) & ((1 << 8 * width) - 1)
        raw[at : at + width] = number.to_bytes(width, "little")
    read_all(bytes(raw))


@FUZZ
@given(headers=st.lists(st.binary(min_size=64, max_size=64), max_size=8), body=st.binary(max_size=300))
def test_section_headers_at_random(headers, body):
    start = GOOD[:40] + struct.pack("<Q", 64 + len(body)) + GOOD[48:60]
    read_all(start + struct.pack("<HH", len(headers), max(0, len(headers) - 1)) + body + b"".join(headers))


# --- files and wheels ----------------------------------------------------------------------------


def test_wheel(tmp_path):
    path = wheel(
        tmp_path / "k-1-py3-none-any.whl",
        {
            "k/_a.so": library((121, A), machine=AARCH64),
            "k/_b.abi3.so": library(machine=AARCH64),
            "k/__init__.py": "import k._a",
            "k/empty": "",
            "k/libx.so": "GROUP ( libx.so.1 )",
        },
    )
    assert read_file(path) == {"k/_a.so": (Code("elf", "sm_121a", 8, 8),), "k/_b.abi3.so": ()}
    assert fatbin.inventory(path) == [
        {
            "file": "k/_a.so",
            "machine": "aarch64",
            "code": [{"kind": "elf", "arch": "sm_121a", "count": 1, "size": 8}],
        },
        {"file": "k/_b.abi3.so", "machine": "aarch64", "code": []},
    ]


def test_inventory_of_what_nvcc_made():
    (found,) = fatbin.inventory(REAL[0])
    assert found["file"] == "mixed.so"
    assert found["machine"] == "x86_64"
    assert [(c["kind"], c["arch"], c["count"]) for c in found["code"]] == [
        ("elf", "sm_80", 2),
        ("elf", "sm_90a", 2),
        ("elf", "sm_120f", 2),
        ("elf", "sm_121a", 2),
        ("ptx", "compute_80", 2),
    ]
    assert json.loads(json.dumps(found)) == found


def twice_the_same_name(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.so", GOOD)
            archive.writestr("a.so", GOOD)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "x.whl: there is no such file"),
        (lambda p: p.mkdir(), "x.whl: is no file"),
        (os.mkfifo, "x.whl: is no file"),
        (lambda p: p.write_bytes(b""), "x.whl: is neither an ELF file nor a sound wheel"),
        (lambda p: p.write_bytes(b"PK\3\4" + bytes(100)), "x.whl: is neither an ELF file nor a sound wheel"),
        (lambda p: wheel(p, {"a.so": GOOD[:-9]}), "x.whl: a.so is truncated"),
        (lambda p: wheel(p, {"a\n.so": GOOD[:-9]}), "x.whl: a?.so is truncated"),
        (lambda p: wheel(p, {"a.so": GOOD}, zipfile.ZIP_LZMA), "x.whl: a.so is compressed in a way"),
        (twice_the_same_name, "x.whl: is no sound wheel: it holds two files of one name"),
    ],
)
def test_no_wheel(tmp_path, make, says):
    make(tmp_path / "x.whl")
    with pytest.raises(FatbinError, match="^" + re.escape(says)):
        read_file(tmp_path / "x.whl")


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    path = wheel(tmp_path / "x.whl", {"a.so": GOOD})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FatbinError, match=r"^x\.whl: Permission denied"):
        read_file(path)


def test_wheel_too_large_to_unpack(tmp_path, monkeypatch):
    monkeypatch.setattr(fatbin, "_MOST_UNPACKED", 1000)
    path = wheel(tmp_path / "x.whl", {"a.so": GOOD + bytes(2000)})
    with pytest.raises(FatbinError, match="its binaries are larger than"):
        read_file(path)


@FUZZ
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.99999), st.integers(0, 7)), max_size=6),
)
def test_damaged_wheels(tmp_path, cut, flips):
    whole = tmp_path / "whole.whl"
    if not whole.exists():
        wheel(whole, {"k/a.so": REAL[1].read_bytes(), "k/b.py": "x" * 500, "k/c.so": GOOD})
    data = bytearray(whole.read_bytes())
    for share, bit in flips:
        data[int(len(data) * share)] ^= 1 << bit
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(data[: int(len(data) * cut)] if cut < 0.5 else data)
    begun = time.monotonic()
    try:
        read_file(damaged)
    except FatbinError as e:
        assert str(e).startswith("damaged.whl: ")
    assert time.monotonic() - begun < 5


# --- demands -------------------------------------------------------------------------------------


EXACT, LINKED, MIXED = REAL[1], REAL[2], REAL[0]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (EXACT, {"capability": "12.1"}),
        (EXACT, {"capability": "12.1", "code": ["sm_121a"], "machine": "x86_64"}),
        (MIXED, {"capability": "8.6"}),
        (MIXED, {"capability": "12.1", "code": ["sm_80", "sm_90a", "sm_120f", "sm_121a"]}),
        (LINKED, {"capability": "8.9", "code": ["sm_89"]}),
    ],
)
def test_sound(path, options):
    assert fatbin.check(path, **options)


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        (EXACT, {"capability": "12.0"}, "exact.so holds sm_121a, wanted GPU code that runs on 12.0"),
        (
            MIXED,
            {"capability": "10.0"},
            "mixed.so holds sm_80, sm_90a, sm_120f, sm_121a, PTX compute_80, wanted GPU code that runs on 10.0",
        ),
        (
            MIXED,
            {"capability": "12.1", "code": ["sm_121a"]},
            "sm_120f, sm_121a, PTX compute_80, wanted sm_121a and no other, that runs on 12.1",
        ),
        (
            EXACT,
            {"capability": "12.1", "code": ["sm_120", "sm_121a"]},
            "wanted sm_120 and sm_121a and no other, that runs on 12.1",
        ),
        (EXACT, {"capability": "12.1", "machine": "aarch64"}, "exact.so is for x86_64, wanted aarch64"),
        (EXACT, {"capability": None, "no_code": True}, "exact.so holds sm_121a, wanted no GPU code"),
        (
            LINKED,
            {"capability": "12.1"},
            "linked.so holds sm_89, rel-elf sm_89, rel-ptx compute_89, wanted GPU code that runs on 12.1",
        ),
    ],
)
def test_unsound(path, options, says):
    with pytest.raises(FatbinError, match=re.escape(says) + "$"):
        fatbin.check(path, **options)


def test_every_part_of_a_library_has_to_run(tmp_path):
    """One file compiled for another GPU hides behind the others in what a plain list shows."""
    path = tmp_path / "k.so"
    path.write_bytes(elf((".nv_fatbin", container(entry(ELF, 121, A)) * 3 + container(entry(ELF, 90)))))
    says = "k.so holds, in 1 of its 4 parts, only sm_90, wanted GPU code that runs on 12.1"
    with pytest.raises(FatbinError, match=re.escape(says)):
        fatbin.check(path, capability="12.1")


def test_every_binary_of_a_wheel_has_to_run(tmp_path):
    files = {"k/a.so": library((121, A)), "k/b.so": library(90), "k/c.so": library(), "k/d.py": ""}
    path = wheel(tmp_path / "k.whl", files)
    with pytest.raises(
        FatbinError, match=re.escape("k.whl: k/b.so holds sm_90, wanted GPU code that runs on 12.1")
    ):
        fatbin.check(path, capability="12.1")
    files["k/b.so"] = library((121, A), machine=AARCH64)
    wheel(path, files)
    assert len(fatbin.check(path, capability="12.1", code=["sm_121a"])) == 3
    with pytest.raises(FatbinError, match=re.escape("k.whl: k/b.so is for aarch64, wanted x86_64")):
        fatbin.check(path, capability="12.1", machine="x86_64")


def test_wheel_without_gpu_code(tmp_path):
    path = wheel(tmp_path / "k.whl", {"k/c.so": library(), "k/d.py": ""})
    with pytest.raises(
        FatbinError, match=r"k\.whl: its 1 binaries hold no GPU code, wanted GPU code that runs on"
    ):
        fatbin.check(path, capability="9.0")
    assert fatbin.check(path, capability=None, no_code=True)
    wheel(path, {"k/d.py": ""})
    with pytest.raises(
        FatbinError, match=r"k\.whl: it holds no binary, wanted sm_90 and no other, that runs on"
    ):
        fatbin.check(path, capability="9.0", code=["sm_90"])
    assert fatbin.check(path, capability=None, no_code=True) == ()


# --- as a script ---------------------------------------------------------------------------------


def script(*words, cwd):
    """In a container there is nothing but this one file."""
    copy = cwd / "fatbin.py"
    shutil.copy(fatbin.__file__, copy)
    argv = [sys.executable, "-I", "-W", "error", copy, *words]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_alone(tmp_path):
    path = wheel(tmp_path / "k-1.whl", {"k/a.so": library((121, A))})
    done = script(
        "check",
        "--compute-capability",
        "12.1",
        "--code",
        "sm_121a",
        "--machine",
        "x86_64",
        path,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["k-1.whl", "  x86_64   k/a.so"]
    assert done.stdout.split()[-6:] == ["elf", "sm_121a", "1", "x", "8", "B"]
    done = script("check", "--compute-capability", "9.0", path, EXACT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fatbin: k-1.whl: k/a.so holds sm_121a, wanted GPU code that runs on 9.0\n"


def test_list(tmp_path, capsys):
    path = wheel(tmp_path / "k.whl", {"k/a.so": library(90), "k/b.so": library()})
    assert fatbin.main(["list", str(path), str(EXACT)]) == 0
    out = capsys.readouterr().out
    assert "x86_64   k/b.so: no GPU code" in out
    assert "exact.so" in out
    assert fatbin.main(["list", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {str(path): fatbin.inventory(path)}
    assert fatbin.main(["list", str(tmp_path / "none.whl")]) == 1
    assert capsys.readouterr().err == "fatbin: none.whl: there is no such file\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["check", "x.whl"],
        ["check", "--no-code", "--compute-capability", "9.0", "x.whl"],
        ["check", "--no-code", "--code", "sm_90", "x.whl"],
        ["check", "--compute-capability", "9.0", "--machine", "arm64", "x.whl"],
        ["list"],
    ],
)
def test_bad_options(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        fatbin.main(words)
    assert stopped.value.code == 2
    assert "usage: fatbin.py" in capsys.readouterr().err


def test_no_code_option(tmp_path, capsys):
    path = wheel(tmp_path / "k.whl", {"k/d.py": ""})
    assert fatbin.main(["check", "--no-code", str(path)]) == 0
    assert fatbin.main(["check", "--no-code", str(EXACT)]) == 1
    assert "holds sm_121a, wanted no GPU code" in capsys.readouterr().err


# --- against cuobjdump ---------------------------------------------------------------------------


NAMES = {"nvvm": "ir"}


@pytest.fixture(scope="session")
def cuobjdump(tmp_path_factory):
    """NVIDIA's own reader, of the package nvidia-cuda-cuobjdump; for Linux on x86_64 and aarch64."""
    try:
        files = metadata.files("nvidia-cuda-cuobjdump") or []
    except metadata.PackageNotFoundError:
        pytest.skip("nvidia-cuda-cuobjdump is not installed")
    (program,) = [Path(str(f.locate())) for f in files if f.name == "cuobjdump"]
    copy = tmp_path_factory.mktemp("cuobjdump") / "cuobjdump"
    shutil.copy(program, copy)
    copy.chmod(copy.stat().st_mode | stat.S_IXUSR)  # a wheel does not always keep it

    def entries(path):
        """[(kind, architecture's number and suffix)] of every entry, in the file's order."""
        done = subprocess.run([copy, "-all", path], capture_output=True, text=True, timeout=600, check=False)
        found = re.findall(r"^Fatbin (.+) code:\n=+\narch = sm_(\w+)$", done.stdout, flags=re.MULTILINE)
        return [(NAMES.get(kind, kind), arch) for kind, arch in found], done.stderr.strip()

    return entries


def given_libraries():
    """Real libraries to compare with: IMGBUILD_CUDA_LIBRARIES names files and folders, with colons between."""
    for word in filter(None, os.environ.get("IMGBUILD_CUDA_LIBRARIES", "").split(":")):
        place = Path(word)
        for path in sorted(place.rglob("*.so*")) if place.is_dir() else [place]:
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    head = file.read(4)
                if head == fatbin.ELF_MAGIC:
                    yield path


def ours(path):
    """The same of ours. cuobjdump shows executable code first."""
    with path.open("rb") as file, fatbin.mapped(file) as data:
        found = list(fatbin.read_containers(data, embedded=False))
    found.sort(key=lambda c: c.section != fatbin.EXECUTABLE)
    return [(code.kind.removeprefix("rel-"), code.arch.partition("_")[2]) for c in found for code in c.codes]


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
def test_equals_cuobjdump(path, cuobjdump):
    entries, _ = cuobjdump(path)
    assert entries == ours(path)
    assert entries


def test_equals_cuobjdump_on_real_libraries(cuobjdump, capsys):
    libraries = list(given_libraries())
    if not libraries:
        pytest.skip("IMGBUILD_CUDA_LIBRARIES names no library")
    holding = total = 0
    for path in libraries:
        entries, said = cuobjdump(path)
        mine = ours(path)
        if "fatal" in said:  # it gives up on cubins for GPUs that it no longer knows
            mine = mine[: len(entries)]
        assert mine == entries, path
        holding += bool(mine)
        total += len(mine)
    with capsys.disabled():
        print(f"\nequal to cuobjdump: {total} entries in {holding} of {len(libraries)} libraries")
