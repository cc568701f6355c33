from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgbuild import kernels, wheelhouse
from imgbuild.cli import main
from imgbuild.errors import ConfigError, DiskError, VerificationError
from imgbuild.wheelhouse import UnsoundError, Wheelhouse, check_wheel

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
INVENTORY = [
    {
        "file": "sageattention/_fused.so",
        "machine": "aarch64",
        "code": [
            {"kind": "elf", "arch": "sm_121a", "count": 3, "size": 9000},
            {"kind": "ptx", "arch": "compute_90", "count": 1, "size": 100},
        ],
    }
]
FACTS = {
    "components": {"torch": "2.13.0", "python": "3.13", "recipe": "0" * 64},
    "inventory": INVENTORY,
    "seconds": 578.04,
    "peak_bytes": 5_000_000_000,
}


def make_wheel(
    folder: Path,
    name="sageattention",
    version="2.2.0",
    *,
    tag="cp313-cp313-linux_aarch64",
    content=b"\x7fELF, or so it says" * 500,
    metadata=None,
    record=None,
    more=(),
) -> Path:
    """A wheel with one library; `record` changes RECORD's lines, `more` are files that RECORD does not know."""
    folder.mkdir(parents=True, exist_ok=True)
    spelled = name.replace("-", "_")
    info = f"{spelled}-{version}.dist-info"
    files = {
        f"{spelled}/_fused.so": content,
        f"{info}/METADATA": (
            metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        ).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nTag: {tag}\n".encode(),
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    lines.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = "\n".join(record(lines) if record else lines).encode()
    path = folder / f"{spelled}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, data in [*files.items(), *more]:
            archive.writestr(zipfile.ZipInfo(place, (2026, 11, 21, 0, 0, 0)), data)
    return path


def tree(folder: Path) -> list[str]:
    """Everything in a folder but the store's lock."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock")


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / "dist")


@pytest.fixture
def store(tmp_path):
    said = []
    made = Wheelhouse(tmp_path / "wheelhouse", say=said.append)
    made.said = said
    return made


@pytest.fixture
def entry(store, wheel):
    return store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)


# What goes in comes out


def test_absent(store):
    assert store.get("sageattention", KEY) is None
    assert store.entries() == ()
    assert store.verify() == ()
    assert store.prune(keep=()) == ()
    assert not store.folder.exists(), "looking makes nothing"


def test_put_and_get(store, wheel, entry):
    assert store.get("sageattention", KEY) == entry
    assert store.entries() == (entry,)
    assert tree(store.folder) == [
        "sageattention",
        f"sageattention/{KEY}",
        f"sageattention/{KEY}/entry.json",
        f"sageattention/{KEY}/{wheel.name}",
    ]
    assert entry.wheel.read_bytes() == wheel.read_bytes()
    assert entry.sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert entry.size == wheel.stat().st_size
    assert (entry.seconds, entry.peak_bytes, entry.version) == (578.0, 5_000_000_000, "2.2.0")
    assert entry.made.endswith("+00:00")
    assert (entry.arches, entry.platform) == (("compute_90", "sm_121a"), "linux/arm64")
    assert "wheelhouse" not in (entry.wheel.parent / "entry.json").read_text(), "no path of this machine"
    assert store.said == []


def test_wheel_of_another_name(store, tmp_path):
    probe = make_wheel(tmp_path, "imgbuild-probe", "1.0.0")
    with pytest.raises(VerificationError, match="says imgbuild-probe, not probe"):
        store.put("probe", "1.0.0", KEY, probe, **FACTS)
    entry = store.put("probe", "1.0.0", KEY, probe, distribution="imgbuild_probe", **FACTS)
    assert store.get("probe", KEY) == entry == store.get("probe", KEY, distribution="imgbuild-probe")
    assert store.get("probe", KEY, distribution="probe") is None
    assert store.said[0].startswith(f"wheelhouse: probe {KEY} is not used: holds a wheel of imgbuild_probe")


def test_local_version(store, tmp_path):
    wheel = make_wheel(tmp_path, "flash-attn", "2.8.3.post2+cu130")
    assert store.put("flash-attn", "2.8.3.post2", KEY, wheel, **FACTS).version == "2.8.3.post2"
    with pytest.raises(VerificationError, match="says version"):
        store.put("flash-attn", "2.8.3.post2+cu128", OTHER, wheel, **FACTS)


def test_a_second_build_uses_the_first(store, entry, tmp_path):
    again = make_wheel(tmp_path / "again", content=b"other bytes")
    assert store.put("sageattention", "2.2.0", KEY, again, **FACTS) == entry


@pytest.mark.parametrize(
    ("kernel", "key"),
    [("../x", KEY), ("rejected", KEY), ("Sage", KEY), ("probe", "../x"), ("probe", KEY + "\n")],
)
def test_names_are_no_paths(store, wheel, kernel, key):
    with pytest.raises(ConfigError):
        store.get(kernel, key)
    with pytest.raises(ConfigError):
        store.put(kernel, "2.2.0", key, wheel, **FACTS)


# What is not what it should be


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(**changes):
    def change(wheel):
        path = wheel.parent / "entry.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _rehash(change):
    """Change the wheel and let entry.json agree: only the wheel itself can tell."""

    def both(wheel):
        change(wheel)
        data = wheel.read_bytes()
        _edit(sha256=hashlib.sha256(data).hexdigest(), size=len(data))(wheel)

    return both


def _foreign(wheel):
    shutil.copy(make_wheel(wheel.parents[3] / "foreign", "flash-attn", "2.8.3"), wheel)


SPOILED = {
    "flipped byte": (_flip, "has the hash"),
    "flipped byte, new hash": (_rehash(_flip), "no whole wheel"),
    "truncated": (lambda w: w.write_bytes(w.read_bytes()[:-100]), "bytes, not"),
    "truncated, new hash": (_rehash(lambda w: w.write_bytes(w.read_bytes()[:-100])), "no whole wheel"),
    "empty": (lambda w: w.write_bytes(b""), "has 0 bytes"),
    "no wheel": (lambda w: w.unlink(), "is missing"),
    "another's wheel": (_rehash(_foreign), "METADATA says flash-attn, not sageattention"),
    "two wheels": (lambda w: shutil.copy(w, w.with_name("x.whl")), "holds 'x.whl' too"),
    "no entry.json": (lambda w: (w.parent / "entry.json").unlink(), "entry.json is missing"),
    "garbage": (lambda w: (w.parent / "entry.json").write_bytes(b"\xff{"), "Invalid JSON"),
    "a list": (lambda w: (w.parent / "entry.json").write_text("[]"), "Input should be an object"),
    "another's entry.json": (_edit(kernel="flash-attn"), f"entry.json is that of flash-attn {KEY}"),
    "another key's": (_edit(key=OTHER), f"that of sageattention {OTHER}"),
    "a path for a wheel": (_edit(wheel="../../../etc/passwd.whl"), "entry.json: wheel: "),
    "a size of words": (_edit(size="many"), "entry.json: size: "),
    "of a later imgbuild": (_edit(format=2), "entry.json: format: "),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILED.values(), ids=SPOILED)
def test_unsound_entry_is_set_aside_told_and_made_again(store, entry, wheel, spoil, says):
    spoil(entry.wheel)
    before = tree(entry.wheel.parent)
    assert [v.problem is not None and says in v.problem for v in store.verify()] == [True]
    assert tree(entry.wheel.parent) == before, "verify moves nothing"
    assert store.get("sageattention", KEY) is None
    rejected = store.folder / "rejected" / f"sageattention-{KEY}"
    assert tree(rejected) == before
    assert len(store.said) == 1
    assert says in store.said[0]
    assert str(rejected) in store.said[0]
    assert store.get("sageattention", KEY) is None
    assert len(store.said) == 1, "told once"
    assert store.put("sageattention", "2.2.0", KEY, wheel, **FACTS).sha256 == entry.sha256
    assert store.get("sageattention", KEY) is not None


def test_several_rejections_lie_side_by_side(store, wheel):
    for _ in range(3):
        _flip(store.put("sageattention", "2.2.0", KEY, wheel, **FACTS).wheel)
        assert store.get("sageattention", KEY) is None
    assert len(list((store.folder / "rejected").iterdir())) == 3


def test_put_over_an_unsound_entry(store, entry, wheel):
    _flip(entry.wheel)
    assert store.put("sageattention", "2.2.0", KEY, wheel, **FACTS).sha256 == entry.sha256
    assert len(store.said) == 1
    assert store.get("sageattention", KEY) is not None


def test_an_entry_that_is_a_file(store, wheel):
    (store.folder / "sageattention").mkdir(parents=True)
    (store.folder / "sageattention" / KEY).write_text("x")
    assert store.entries() == ()
    assert store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    assert "is a file, not a folder" in store.said[-1]


def test_unreadable_entry_is_left_out_of_the_list(store, entry, wheel):
    store.put("sageattention", "2.2.0", OTHER, wheel, **FACTS)
    (entry.wheel.parent / "entry.json").write_text("{")
    assert [e.key for e in store.entries()] == [OTHER]
    assert KEY in store.said[0]


# The wheel's own word


def test_sound_wheel(wheel):
    check_wheel(wheel, distribution="sageattention", version="2.2.0")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "flash-attn"}, "says flash-attn, not sageattention"),
        ({"version": "2.1.0"}, "says version 2.1.0, not 2.2.0"),
        ({"metadata": "Name: flash_attn\nVersion: 2.2.0\n"}, "METADATA says flash_attn"),
        ({"metadata": "Name: sageattention\nVersion: 1\n"}, "METADATA says version 1"),
        ({"metadata": "Name: sageattention\nVersion: new\n"}, "METADATA: Invalid version"),
        ({"record": lambda lines: lines[1:]}, "RECORD has no hash of sageattention/_fused.so"),
        (
            {"record": lambda lines: [lines[0].replace("=", "=A", 1), *lines[1:]]},
            "no whole wheel|what RECORD says",
        ),
        ({"record": lambda lines: ["x,md5=1,1", *lines]}, "lacks x, which is in RECORD"),
        ({"record": lambda lines: ["x", *lines]}, "no whole wheel"),
        ({"more": [("x/", b"")]}, None),
        ({"more": [("evil.pth", b"import os")]}, "RECORD has no hash of evil.pth"),
        ({"more": [("x-1.dist-info/METADATA", b"")]}, "holds 2 .dist-info folders"),
    ],
)
def test_wheel_that_is_not_what_it_says(tmp_path, changes, says):
    wheel = make_wheel(tmp_path, **changes)
    if says is None:
        check_wheel(wheel, distribution="sageattention", version="2.2.0")
        return
    with pytest.raises(UnsoundError, match=says):
        check_wheel(wheel, distribution="sageattention", version="2.2.0")


def test_a_file_twice_in_a_wheel(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        wheel = make_wheel(tmp_path, more=[("sageattention/_fused.so", b"other")])
    with pytest.raises(UnsoundError, match=r"no whole wheel|what RECORD says|twice"):
        check_wheel(wheel, distribution="sageattention", version="2.2.0")


def test_no_zip_no_file_no_wheel_name(tmp_path):
    path = tmp_path / "sageattention-2.2.0-py3-none-any.whl"
    with pytest.raises(UnsoundError, match="no such file"):
        check_wheel(path, distribution="sageattention", version="2.2.0")
    path.write_text("<html>")
    with pytest.raises(UnsoundError, match="File is not a zip file"):
        check_wheel(path, distribution="sageattention", version="2.2.0")
    with pytest.raises(UnsoundError, match="no whole wheel"):
        check_wheel(tmp_path / "x.whl", distribution="x", version="1")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path, data):
    wheel = make_wheel(tmp_path)
    raw = bytearray(wheel.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    wheel.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2, 30]))])
    try:
        check_wheel(wheel, distribution="sageattention", version="2.2.0")
    except UnsoundError as e:
        assert str(e)


# Two at once, and what gets in the way


def _put_at_once(folder, wheel, barrier, answers):
    said = []
    barrier.wait(30)
    entry = Wheelhouse(Path(folder), say=said.append).put("sageattention", "2.2.0", KEY, Path(wheel), **FACTS)
    answers.put((entry.sha256, str(entry.wheel), said))


def test_two_processes_at_once(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    wheels = [make_wheel(tmp_path / str(n), content=os.urandom(2_000_000)) for n in range(2)]
    children = [
        context.Process(target=_put_at_once, args=(str(store.folder), str(w), barrier, answers))
        for w in wheels
    ]
    for child in children:
        child.start()
    found = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    answers.close()
    answers.join_thread()
    assert found[0] == found[1], "the second uses the first's"
    assert found[0][2] == []
    assert store.get("sageattention", KEY).sha256 == found[0][0]
    assert len(tree(store.folder)) == 4, "and nothing is left of its own"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["_copy", "_write", "_sync"])
def test_disk_full(store, wheel, monkeypatch, where, number):
    def full(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(wheelhouse, where, full)
    with pytest.raises(DiskError, match="disk of the wheelhouse is full") as caught:
        store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    assert "imgbuild prune" in caught.value.hint
    assert tree(store.folder) == []


@pytest.mark.parametrize("where", ["_copy", "_write", "_sync"])
def test_interrupted(store, wheel, monkeypatch, where):
    own = getattr(wheelhouse, where)

    def interrupted(*args):
        own(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(wheelhouse, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    monkeypatch.undo()
    assert tree(store.folder) == []
    assert store.get("sageattention", KEY) is None


def test_other_failures_of_the_disk_are_not_called_full(store, wheel, monkeypatch):
    def broken(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(wheelhouse, "_copy", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    assert tree(store.folder) == []


def test_prune(store, wheel, tmp_path):
    one = store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    two = store.put("sageattention", "2.2.0", OTHER, wheel, **FACTS)
    three = store.put("flash-attn", "2.8.3", KEY, make_wheel(tmp_path, "flash-attn", "2.8.3"), **FACTS)
    keep = {("sageattention", KEY)}
    assert store.prune(keep=keep, dry_run=True) == (three, two)
    assert len(store.entries()) == 3
    assert store.prune(keep=keep, kernel="sageattention") == (two,)
    assert store.entries() == (three, one)
    assert store.prune(keep=keep) == (three,)
    assert store.entries() == (one,)
    assert not {"flash-attn", "rejected"} & {p.name for p in store.folder.iterdir()}
    _flip(one.wheel)
    store.get("sageattention", KEY)
    assert store.prune(keep=(), kernel="flash-attn") == ()
    assert tree(store.folder / "rejected"), "another kernel's stays"
    store.prune(keep=())
    assert tree(store.folder) == []


def test_prune_sweeps_what_a_killed_process_left(store, entry):
    fresh, old = store.folder / ".work-fresh", store.folder / ".work-old"
    for folder in (fresh, old):
        (folder / "entry").mkdir(parents=True)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    assert store.entries() == (entry,)
    store.prune(keep={("sageattention", KEY)})
    assert fresh.exists()
    assert not old.exists()


@pytest.fixture
def found(monkeypatch):
    """What is found in every wheel: ours hold no code that a GPU runs."""
    codes = list(INVENTORY)
    monkeypatch.setattr(wheelhouse.fatbin, "inventory", lambda _path: codes)
    return codes


def test_verify_reads_the_code_again(store, entry, found):
    assert store.verify() == store.verify(kernel="sageattention") == store.verify(keys=[KEY])
    assert [(v.entry, v.problem) for v in store.verify()] == [(entry, None)]
    assert store.verify(kernel="probe") == store.verify(keys=[OTHER]) == ()
    found.clear()
    assert [v.problem for v in store.verify()] == [
        "its binaries do not hold the code that was recorded of them"
    ]


def test_verify_of_a_library_that_is_none(store, entry):
    (verdict,) = store.verify()
    assert "_fused.so" in verdict.problem


def test_arches_are_sorted_by_number_and_nothing_else_gets_through(entry):
    codes = [{"kind": "elf", "arch": a} for a in ("sm_120a", "sm_90a", "sm_80", "\x1b[31m", 7, None)]
    odd = dataclasses.replace(entry, inventory=[{"code": codes}, {"code": ["x"]}, {"code": 5}, {}])
    assert odd.arches == ("sm_80", "sm_90a", "sm_120a")


# The command line


@pytest.fixture
def imgbuild(store, root, monkeypatch, capsys):
    monkeypatch.setenv("IMGBUILD_CACHE", str(store.folder.parent))
    monkeypatch.delenv("IMGBUILD_WHEELHOUSE", raising=False)
    monkeypatch.setattr(
        kernels,
        "wanted",
        lambda _project, _matrix, _targets, names=(): tuple(
            pair for pair in (("sageattention", KEY), ("flash-attn", KEY)) if not names or pair[0] in names
        ),
    )

    def run(*words):
        code = main(["--project", str(root), "wheels", *words])
        return code, *capsys.readouterr()

    return run


def test_list(imgbuild, store, wheel):
    assert imgbuild("list")[2] == f"• the wheelhouse is empty: {store.folder}\n"
    store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)
    code, out, err = imgbuild("list")
    assert (code, err) == (0, "")
    for word in ("sageattention", KEY, "2.2.0", "sm_121a", "linux/arm64", "578", "5.0 GB"):
        assert word in out
    (row,) = json.loads(imgbuild("list", "--json", "--kernel", "sageattention")[1])
    assert row["wheel"] == str(store.entries()[0].wheel)
    assert row["inventory"] == INVENTORY
    assert row["components"] == FACTS["components"]
    code, _, err = imgbuild("list", "--kernel", "sageatention")
    assert code == 3
    assert "did you mean 'sageattention'?" in err


def test_verify_command(imgbuild, entry, found):
    assert imgbuild("verify")[0] == 0
    assert imgbuild("verify", OTHER)[0] == 3
    _flip(entry.wheel)
    code, out, err = imgbuild("verify", KEY)
    assert code == 7
    assert "has the hash" in out
    assert f"sageattention {KEY}: " in err
    assert f"hint: rm -r {entry.wheel.parent};" in err
    assert entry.wheel.exists()


def test_prune_command(imgbuild, store, entry, wheel):
    store.put("sageattention", "2.2.0", OTHER, wheel, **FACTS)
    assert "would remove sageattention fedc" in imgbuild("prune", "--dry-run")[2]
    assert len(store.entries()) == 2
    assert f"removed sageattention {OTHER}" in imgbuild("prune", "--yes")[2]
    assert store.entries() == (entry,)
    assert imgbuild("prune", "--yes", "--kernel", "sagattention")[0] == 3


def test_no_registry_named(imgbuild, entry):
    for words in (["push"], ["pull", "--all"]):
        code, _, err = imgbuild(*words)
        assert code == 2
        assert "IMGBUILD_WHEELHOUSE" in err
