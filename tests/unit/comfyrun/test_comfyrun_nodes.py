"""Custom nodes and their packages, with the real pip, an image of three files and an index that is a folder."""

from __future__ import annotations

import dataclasses
import ensurepip
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import comfyrun
from comfyrun import nodes, nodesources, overlay, packages
from comfyrun.errors import ConfigError, MachineError
from comfyrun.layout import Layout
from comfyrun.overlay import Place

HOOK = Path(comfyrun.__file__).parent / "hook"
TORCH = "2.13.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Where Debian keeps pip's wheel, else where Python does.
WHEELS = next(
    (
        folder
        for folder in (Path("/usr/share/python-wheels"), Path(ensurepip.__file__).parent / "_bundled")
        if list(folder.glob("pip-*.whl"))
    ),
    None,
)
needs_pip = pytest.mark.skipif(WHEELS is None, reason="this Python has no wheel of pip")


def wheel(index: Path, name: str, version: str, *requires: str, **files: str) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        f"{name.replace('-', '_')}/__init__.py": f"version = {version!r}\n",
        **files,
        f"{stem}.dist-info/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in contents)
    with zipfile.ZipFile(index / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in {**contents, f"{stem}.dist-info/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    for name, version, *requires in [
        ("torch", "2.5.0"),
        ("torch", TORCH),
        ("helper", "1.0"),
        ("helper", "2.0"),
        ("wants-torch", "1.0", "torch>=2", "helper"),
        ("wants-old-torch", "1.0", "torch<2.6"),
    ]:
        wheel(folder, name, version, *requires)
    return folder


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's environment: no pip, and a torch that one can tell from another."""
    folder = tmp_path_factory.mktemp("image") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for name, version in (("torch", TORCH), ("flash-attn", "2.8.3")):
        module = name.replace("-", "_")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n")
        (site / module).mkdir()
        (site / module / "__init__.py").write_text("version = 'the image'\n")
    return folder


@pytest.fixture(scope="session")
def venv_with_pip(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in an image that somebody derived: its bytecode is written once, and every test is faster."""
    folder = tmp_path_factory.mktemp("derived") / "venv"
    shutil.copytree(venv, folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for wheel in sorted((WHEELS or folder).glob("pip-*.whl"))[-1:]:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return folder


@pytest.fixture
def place(tmp_path: Path, venv_with_pip: Path, index: Path) -> Place:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "constraints.txt").write_text(f"torch=={TORCH}\nnot-installed==1.0\n")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "COMFY"))}
    environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    environ |= {"PIP_TARGET": str(tmp_path / "elsewhere"), "PYTHONPATH": str(tmp_path / "elsewhere")}
    return Place(
        layout=Layout(python=venv_with_pip / "bin" / "python", etc=etc, hook=HOOK, wheels=WHEELS or tmp_path),
        data=str(tmp_path / "data"),
        cache=str(tmp_path / "cache"),
        torch=TORCH,
        environ=environ,
        baked=("dgls",),
    )


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Path]:
    def node(name: str, *requires: str, **files: str) -> Path:
        folder = tmp_path / "sources" / name
        folder.mkdir(parents=True)
        contents = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", **files}
        if requires:
            contents["requirements.txt"] = "\n".join(requires)
        for path, text in contents.items():
            (folder / path).write_text(text)
        return folder

    return node


@pytest.fixture
def verb(place: Place) -> Callable[..., str]:
    """Runs a verb; what it said."""

    def verb(*arguments: str | Path, at: Place = place) -> str:
        said: list[str] = []
        nodes.main([str(a) for a in arguments], at, said.append)
        return "\n".join(said)

    return verb


def ask(place: Place, code: str) -> str:
    """What ComfyUI's Python prints."""
    environ = {**os.environ, **dict(overlay.variables(place.layout, place.data, TORCH, {}, nodes=True))}
    command = [str(place.layout.python), "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def bare(place: Place, venv: Path) -> Place:
    """The image as it is built."""
    return dataclasses.replace(
        place, layout=dataclasses.replace(place.layout, python=venv / "bin" / "python")
    )


@needs_pip
def test_a_node_and_its_packages(place: Place, node: Any, verb: Any, capsys: Any) -> None:
    said = verb("install", node("one", "wants-torch  # and a comment"))
    assert "one is installed in" in said
    assert "2 packages beside those of the image" in said
    assert overlay.installed(place.site) == [
        overlay.Package(name="helper", version="2.0"),
        overlay.Package(name="wants-torch", version="1.0"),
    ]
    assert ask(place, "import torch, helper; print(torch.version, helper.version)") == "the image 2.0"
    assert not (Path(place.data).parent / "elsewhere").exists()
    assert sorted(p.name for p in (Path(place.data) / "python").iterdir()) == [".lock", f"torch-{TORCH}"]

    capsys.readouterr()
    verb("list")
    text = capsys.readouterr().out
    assert "dgls  in the image" in text
    assert f"one   {Path(place.data).parent}/sources/one, 20" in text
    assert "helper 2.0, wants-torch 1.0" in text
    verb("list", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert [n["kind"] for n in shown["nodes"]] == ["baked", "installed"]
    assert shown["packages"] == {"helper": "2.0", "wants-torch": "1.0"}
    assert shown["note"] is None


@needs_pip
def test_pip_out_of_debians_wheel(bare: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "wants-torch"), at=bare)
    assert ask(bare, "import torch, helper; print(torch.version, helper.version)") == "the image 2.0"


@needs_pip
@pytest.mark.parametrize(
    ("requires", "words"),
    [
        (["torch==2.5.0"], "one asks for torch==2.5.0, and this image has torch 2.13.0"),
        (["helper", "Torch < 2.6"], "one asks for Torch<2.6, and this image has torch 2.13.0"),
        (
            ["wants-old-torch"],
            "wants-old-torch 1.0, which one needs, asks for torch<2.6, and this image has torch",
        ),
        (["flash_attn>=3"], "one asks for flash_attn>=3, and this image has flash-attn 2.8.3"),
        (
            ["torch @ https://u:secret@example.invalid/t.whl"],
            "one asks for torch @ https://***@example.invalid/t.whl, and this image has torch",
        ),
        (
            ["https://example.invalid/torch-2.5.0-cp311-cp311-linux_x86_64.whl"],
            "and this image has torch 2.13.0",
        ),
    ],
)
def test_another_torch_is_refused(
    place: Place, node: Any, verb: Any, requires: list[str], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        verb("install", node("one", *requires))
    assert words in str(caught.value)
    assert "nothing may replace" in str(caught.value)
    assert caught.value.exit_code == 2
    # Nothing has changed.
    assert everything(place.nodes) == set()
    assert everything(Path(place.data, "python")) == {".lock"}


@needs_pip
def test_nodes_that_do_not_go_together(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "helper==1.0"))
    with pytest.raises(ConfigError) as caught:
        verb("install", node("two", "helper==2.0"))
    assert "one asks for helper==1.0" in str(caught.value)
    assert "two asks for helper==2.0" in str(caught.value)
    assert ask(place, "import helper; print(helper.version)") == "1.0"
    assert not (place.nodes / "two").exists()


@needs_pip
def test_a_package_that_does_not_exist(place: Place, node: Any, verb: Any) -> None:
    with pytest.raises(
        MachineError, match="pip did not succeed, and nothing was changed: ERROR: Could not find"
    ):
        verb("install", node("one", "no-such-package"))
    assert everything(place.nodes) == set()


@needs_pip
def test_remove_takes_the_packages_along(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "helper==1.0"))
    verb("install", node("two", "wants-torch"))
    assert len(overlay.installed(place.site)) == 2
    assert "one is removed" in verb("remove", "one")
    assert ask(place, "import helper; print(helper.version)") == "2.0"
    verb("remove", "two")
    assert not place.overlay.exists()
    assert everything(place.nodes) == set()


@needs_pip
def test_remove_without_an_index(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "helper"))
    verb("install", node("two", "wants-torch"))
    place.environ["PIP_FIND_LINKS"] = os.devnull  # type: ignore[index]
    assert "its packages are still there, for now" in verb("remove", "one")
    assert not (place.nodes / "one").exists()
    assert ask(place, "import helper; print(helper.version)") == "2.0"


def test_a_node_without_requirements_needs_no_index(place: Place, node: Any, verb: Any) -> None:
    said = verb("install", node("one", **{"install.py": ""}))
    assert "pip" not in said
    assert "has an install.py, which comfyrun does not run" in said
    assert not place.overlay.exists()


@needs_pip
def test_a_node_that_the_image_satisfies(place: Place, node: Any, verb: Any) -> None:
    assert "0 packages beside those of the image" in verb("install", node("one", "torch>=2"))
    assert overlay.note(place) == ""
    assert verb("sync") == ""


@needs_pip
def test_requirements_of_pyproject(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", **{"pyproject.toml": '[project]\ndependencies = ["helper==1.0"]\n'}))
    assert ask(place, "import helper; print(helper.version)") == "1.0"


@needs_pip
def test_a_node_put_there_by_hand_keeps_its_folder(place: Place, node: Any, verb: Any, capsys: Any) -> None:
    place.nodes.mkdir(parents=True)
    mine = place.nodes / "mine"
    shutil.move(node("mine", "helper==1.0"), mine)
    verb("list")
    assert "mine  put there by hand" in capsys.readouterr().out
    other = node("mine")
    with pytest.raises(ConfigError, match="was not put there by comfyrun"):
        verb("install", other)
    verb("install", mine)
    assert ask(place, "import helper; print(helper.version)") == "1.0"
    with pytest.raises(ConfigError, match="was not put there by comfyrun"):
        verb("install", other)
    assert "only switched off" in verb("remove", "mine")
    assert (place.nodes / "mine.disabled" / "requirements.txt").exists()
    assert not place.overlay.exists()
    with pytest.raises(ConfigError, match=r"delete .*mine\.disabled yourself"):
        verb("remove", "mine.disabled")


@needs_pip
def test_another_image_on_the_same_volume(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "helper==1.0"))
    assert overlay.note(place) == ""
    other = dataclasses.replace(place, torch="2.14.0")
    assert "were installed for another image (torch-2.13.0/cp3" in overlay.note(other)
    verb("sync", at=other)
    assert overlay.note(other) == ""
    assert place.overlay.exists()
    record = place.overlay / "overlay.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "image": {"torch": "1"}}))
    assert "were chosen to fit another image's" in overlay.note(place)
    verb("sync")
    assert overlay.note(place) == ""


@needs_pip
def test_a_change_by_hand_is_picked_up(place: Place, node: Any, verb: Any) -> None:
    verb("install", node("one", "helper==1.0"))
    (place.nodes / "one" / "requirements.txt").write_text("helper==2.0\n")
    assert "pip" in verb("sync")
    assert ask(place, "import helper; print(helper.version)") == "2.0"
    assert verb("sync") == ""


@needs_pip
def test_sync_looks_after_what_was_put_there_by_hand(place: Place, node: Any, verb: Any, capsys: Any) -> None:
    """Somebody comes from another image, with a folder of nodes and no packages."""
    place.nodes.mkdir(parents=True)
    for name, requires in (
        ("first", "helper==1.0"),
        ("second", "wants-torch"),
        ("third.disabled", "torch==2.5.0"),
    ):
        shutil.move(node(name, requires), place.nodes / name)
    (place.nodes / "__pycache__").mkdir()
    (place.nodes / "no-node").mkdir()
    assert "first, which was put there by hand, has its packages" in verb("sync")
    assert ask(place, "import helper; print(helper.version)") == "1.0"
    verb("list")
    text = capsys.readouterr().out
    assert "third.disabled  switched off by its name" in text
    assert "no-node         put there by hand" in text
    assert verb("sync") == ""


@needs_pip
def test_sync_that_is_refused_changes_nothing(place: Place, node: Any, verb: Any) -> None:
    place.nodes.mkdir(parents=True)
    shutil.move(node("mine", "torch==2.5.0"), place.nodes / "mine")
    with pytest.raises(ConfigError, match="mine asks for torch==2"):
        verb("sync")
    assert everything(place.nodes) == {"mine", "mine/__init__.py", "mine/requirements.txt"}


def test_two_at_once(place: Place, node: Any, verb: Any) -> None:
    root = Path(place.data, "python")
    root.mkdir(parents=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="another `comfyrun nodes` is at work"):
            verb("install", node("one"))
    assert everything(root) == {".lock"}


def test_leftovers_of_one_that_was_killed(place: Place, node: Any, verb: Any) -> None:
    left = Path(place.data, "python", ".work-left")
    (left / "pip").mkdir(parents=True)
    verb("install", node("one"))
    assert not left.exists()


def test_an_image_without_pip(bare: Place, node: Any, verb: Any, tmp_path: Path) -> None:
    none = dataclasses.replace(bare, layout=dataclasses.replace(bare.layout, wheels=tmp_path))
    with pytest.raises(MachineError, match="this image has no installer"):
        verb("install", node("one", "helper"), at=none)


def test_a_full_or_readonly_volume(
    place: Place, node: Any, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(self: Path, **_options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    source = node("one")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(MachineError, match="Read-only file system; comfyrun runs as UID"):
        verb("install", source)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["ERROR: Cannot find command 'git' - do you have 'git' installed"], "there is no git in this image"),
        (
            ["WARNING: Retrying: NewConnectionError(...)", "ERROR: No matching distribution"],
            "cannot be reached",
        ),
        (["ERROR: [Errno 28] No space left on device"], "the disk is full"),
        (["error: command 'g++' failed", "ERROR: Failed building wheel for x"], "would have to be built"),
        (
            ["  error: subprocess-exited-with-error", "      ModuleNotFoundError: No module named 'torch'"],
            "nothing was changed: ModuleNotFoundError: No module named 'torch'",
        ),
        ([], "it said nothing"),
    ],
)
def test_what_pip_says_is_explained(said: list[str], words: str) -> None:
    assert words in packages._failure(said)


# --- sources -----------------------------------------------------------------------------------


def tarball(path: Path, entries: dict[str, str], *, links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive(place: Place, verb: Any, tmp_path: Path) -> None:
    entries = {
        f"Node-{COMMIT}/__init__.py": "x = 1\n",
        f"Node-{COMMIT}/web/a.js": "",
        f"Node-{COMMIT}/.git/x": "",
    }
    archive = tarball(tmp_path / f"Node-{COMMIT}.tar.gz", entries, links={f"Node-{COMMIT}/l": "/etc/passwd"})
    said = verb("install", archive, "--sha256", sha256(archive).upper())
    assert everything(place.nodes / "Node") == {"__init__.py", "web", "web/a.js", ".comfyrun.json"}
    assert "1 links and special files" in said
    assert json.loads((place.nodes / "Node" / ".comfyrun.json").read_text())["sha256"] == sha256(archive)
    # The same name again takes its place.
    with zipfile.ZipFile(tmp_path / "Node-main.zip", "w") as again:
        again.writestr("__init__.py", "x = 2\n")
        again.mkdir("web") if hasattr(again, "mkdir") else None
    assert "Node is installed" in verb("install", tmp_path / "Node-main.zip")
    assert everything(place.nodes / "Node") == {"__init__.py", ".comfyrun.json"}


def test_an_archive_with_another_hash(place: Place, verb: Any, tmp_path: Path) -> None:
    archive = tarball(tmp_path / "n.tgz", {"n/__init__.py": ""})
    with pytest.raises(ConfigError, match=f"its SHA-256 is {sha256(archive)}, wanted was {'0' * 64}"):
        verb("install", archive, f"--sha256={'0' * 64}")
    assert everything(place.nodes) == set()


@pytest.mark.parametrize("path", ["/etc/x", "n/../../x", "../x"])
def test_an_archive_that_leads_out(place: Place, verb: Any, tmp_path: Path, path: str) -> None:
    archive = tarball(tmp_path / "n.tgz", {"n/__init__.py": "", path: "evil"})
    with pytest.raises(ConfigError, match="a path that leads out of it"):
        verb("install", archive)
    assert not (tmp_path / "data" / "x").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no zip", b"\x1f\x8b\x08 no gzip", b"\xfd7zXZ\x00 no xz", b"text"]
)
def test_no_archive(verb: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "n.zip").write_bytes(content)
    with pytest.raises(ConfigError, match="is no archive that can be read"):
        verb("install", tmp_path / "n.zip")


def test_too_large(verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodesources, "_LARGEST", 3)
    archive = tarball(tmp_path / "n.tgz", {"n/__init__.py": "long"})
    with pytest.raises(ConfigError, match="is too large"):
        verb("install", archive)


def test_a_commit_of_a_host_with_archives(
    place: Place, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def urlopen(request: Any, timeout: float) -> Any:
        asked.append(request.full_url)
        return (tmp_path / "answer").open("rb")

    tarball(
        tmp_path / "answer",
        {f"ComfyUI-Foo-{COMMIT}/__init__.py": "", f"ComfyUI-Foo-{COMMIT}/.gitmodules": ""},
    )
    monkeypatch.setattr(nodesources.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(nodesources.shutil, "which", lambda _name: None)
    said = verb("install", f"https://github.com/someone/ComfyUI-Foo.git@{COMMIT}")
    assert asked == [f"https://github.com/someone/ComfyUI-Foo/archive/{COMMIT}.tar.gz"]
    assert "has git submodules" in said
    record = json.loads((place.nodes / "ComfyUI-Foo" / ".comfyrun.json").read_text())
    assert record["commit"] == COMMIT
    with pytest.raises(
        ConfigError, match=r"there is no git in this image, and comfyrun knows no archives of git\.x"
    ):
        verb("install", f"https://git.x/a/b@{COMMIT}")


def test_nobody_answers(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(_request: Any, timeout: float) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(nodesources.urllib.request, "urlopen", urlopen)
    with pytest.raises(MachineError, match=r"https://\*\*\*@x/n.zip cannot be fetched: no route"):
        verb("install", "https://me:secret@x/n.zip", "--sha256", "0" * 64)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_git_repository(place: Place, verb: Any, node: Any) -> None:
    folder = node("repo")
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    commit = git("rev-parse", "HEAD")
    verb("install", f"file://{folder}@{commit}", "--name", "from-git")
    assert everything(place.nodes / "from-git") == {"__init__.py", ".comfyrun.json"}
    with pytest.raises(MachineError, match="git fetch failed"):
        verb("install", f"file://{folder}@{COMMIT}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs one source"),
        (["a", "b"], "needs one source"),
        (["--name"], "--name needs a value"),
        (["--branch", "x"], "nodes install knows --name and --sha256, not --branch"),
        (["/no/such"], "is neither a folder nor a file here"),
        (["a\0b"], "cannot be looked at"),
        (["https://github.com/a/b"], "names no content for certain"),
        (["https://github.com/a/b@main"], "names no content for certain"),
        (["https://me:secret@x/n.zip"], "an archive from a network needs --sha256"),
        (["ftp://x/n.zip", "--sha256", "0" * 64], "archives are fetched by https or http"),
        (["https://x/n.zip", "--sha256", "abc"], "--sha256 abc is no SHA-256"),
        (["/", "--sha256", "0" * 64], "--sha256 is for archives"),
        (["/", "--name", "../x"], "make a node's name"),
        (["/"], "cannot be a node's folder: give it a name with --name"),
        (["/tmp", "--name", "dgls"], "dgls is a node of the image already"),
    ],
)
def test_bad_sources(verb: Any, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verb("install", *arguments)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_node(verb: Any, tmp_path: Path, place: Place) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is no custom node: there is no __init__\.py"):
        verb("install", tmp_path / "folder")
    (place.nodes / "here").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is no custom node: there is no __init__\.py"):
        verb("install", place.nodes / "here")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["instal"], "comfyrun nodes has no command 'instal' (did you mean install?)"),
        (["list", "--yaml"], "nodes list knows only --json"),
        (["remove"], "nodes remove needs the names of nodes"),
        (["remove", "dgsl"], "there is no node 'dgsl' (did you mean dgls?)"),
        (["remove", "dgls"], "dgls is part of the image and stays"),
        (["sync", "x"], "nodes sync knows no arguments"),
    ],
)
def test_bad_verbs(verb: Any, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verb(*arguments)
    assert words in str(caught.value)


def test_help(place: Place, capsys: Any) -> None:
    assert nodes.main(["--help"], place, print) == 0
    assert nodes.main([], place, print) == 2
    assert capsys.readouterr().out.count("usage: comfyrun nodes install") == 2


@pytest.mark.parametrize("content", [b"\xff", b"[", b"[[]]"])
def test_unreadable_requirements(verb: Any, node: Any, content: bytes) -> None:
    source = node("one")
    (source / "pyproject.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="one: what it requires cannot be read"):
        verb("install", source)


# --- the hook ----------------------------------------------------------------------------------


def hooked(python: Path, code: str, **environ: str) -> str:
    command = [str(python), "-c", code]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COMFYRUN"))}
    done = subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_hook_serves_no_other_python(place: Place, venv: Path) -> None:
    site = place.overlay / "site-packages"
    site.mkdir(parents=True)
    environ = dict(overlay.variables(place.layout, place.data, TORCH, {}, nodes=True))
    last = "import sys; print(sys.path[-1])"
    assert hooked(place.layout.python, last, **environ) == str(site)
    assert hooked(Path(sys.executable), last, **environ) != str(site)
    off = dict(overlay.variables(place.layout, place.data, TORCH, {}, nodes=False))
    assert hooked(place.layout.python, last, **off) != str(site)


def test_the_hook_lets_the_next_one_run(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("import sys; sys.mine = 7\n")
    environ = dict(
        overlay.variables(place.layout, "/d", TORCH, {"PYTHONPATH": str(tmp_path / "mine")}, nodes=True)
    )
    assert environ["PYTHONPATH"] == f"{HOOK}:{tmp_path / 'mine'}"
    assert hooked(place.layout.python, "import sys; print(sys.mine)", **environ) == "7"


def test_the_hook_makes_lines_appear_when_they_are_printed(place: Place) -> None:
    """ComfyUI wraps the streams as here, and would keep the line for as long as it has nothing more to say."""
    code = (
        "import io, os, sys; out = io.TextIOWrapper(sys.stdout.buffer, line_buffering=sys.stdout.line_buffering); "
        "print('at once', file=out); os._exit(0)"
    )
    environ = dict(overlay.variables(place.layout, "/d", TORCH, {}, nodes=True))
    assert hooked(place.layout.python, code, PYTHONUNBUFFERED="1") == ""
    assert hooked(place.layout.python, code, PYTHONUNBUFFERED="1", **environ) == "at once"
