from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from syntheticui import MACHINE
from test_comfyrun_settings import flags, start

from comfyrun import cli, directories, models
from comfyrun.errors import MachineError
from comfyrun.launch import Directory, File

if TYPE_CHECKING:
    from pathlib import Path

    from comfyrun.layout import Layout


def tree(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


def found(root: Path) -> dict[str, list[str]]:
    looked = models.look([str(root)])
    kinds = models.places(str(root), looked[str(root)])
    return {kind: [p.removeprefix(f"{root}/") for p in paths] for kind, paths in kinds.items()}


def test_a_models_folder(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "checkpoints/sd", "unet", "t2i_adapter", "controlnet", "ultralytics", ".git", "custom_nodes"
    )
    (root / "readme").write_text("")
    assert found(root) == {
        "checkpoints": ["checkpoints"],
        "controlnet": ["controlnet", "t2i_adapter"],
        "ultralytics": ["ultralytics"],
        "unet": ["unet"],
    }


def test_a_whole_comfyui(tmp_path: Path) -> None:
    root = tree(tmp_path, "models/loras", "models/vae", "custom_nodes/x", "output", "user")
    assert found(root) == {"loras": ["models/loras"], "vae": ["models/vae"]}


def test_automatic1111(tmp_path: Path) -> None:
    root = tree(tmp_path, "models/Stable-diffusion", "models/Lora", "embeddings", "extensions")
    assert found(root) == {
        "checkpoints": ["models/Stable-diffusion"],
        "configs": ["models/Stable-diffusion"],
        "loras": ["models/Lora"],
        "embeddings": ["embeddings"],
    }


def test_an_empty_models_folder_in_another(tmp_path: Path) -> None:
    assert found(tree(tmp_path, "models", "checkpoints")) == {"checkpoints": ["checkpoints"]}


def test_what_cannot_be_looked_at() -> None:
    assert models.look(["/nowhere/at/all", "/a\0b", "/x.yaml"]) == {}
    assert models.places("/m", None)["checkpoints"] == ["/m/checkpoints"]


def test_words_of_the_file_are_no_kinds(tmp_path: Path) -> None:
    assert found(tree(tmp_path, "base_path", "is_default", "vae")) == {"vae": ["vae"]}


NAME = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20)


@given(NAME, NAME)
def test_the_file_is_yaml_whatever_folders_are_called(folder: str, name: str) -> None:
    if not (folder.isprintable() and name.isprintable()):
        return
    text = models.extra_model_paths({f"/{folder}": {name: [f"/{folder}/{name}", "/b"]}})
    assert yaml.safe_load(text) == {f"COMFY_MODELS /{folder}": {name: f"/{folder}/{name}\n/b"}}


def test_a_launch_with_more_models(tmp_path: Path) -> None:
    one, two = tree(tmp_path / "one", "loras"), tree(tmp_path / "two", "models/vae")
    value = f"{one}:{two}/:/etc/more.yaml:/data/models:"
    folders = models.look([str(one), str(two)])
    launch = start(COMFY_MODELS=value, machine=dataclasses.replace(MACHINE, folders=folders))
    (more, made) = launch.files
    assert (more.path, more.text) == ("/etc/more.yaml", None)
    assert made.path.startswith("/cache/comfyrun/model-paths-")
    assert made.text is not None
    assert yaml.safe_load(made.text) == {
        f"COMFY_MODELS {one}": {"loras": f"{one}/loras"},
        f"COMFY_MODELS {two}": {"vae": f"{two}/models/vae"},
    }
    assert [o.values[0] for o in launch.options if o.origin == "COMFY_MODELS"] == [more.path, made.path]
    assert [d.path for d in launch.directories if d.given == "COMFY_MODELS"] == [str(one), str(two)]
    assert launch.notes == ("COMFY_MODELS: /data/models is where ComfyUI looks anyway",)
    assert flags(launch)["--base-directory"][0] == "/data"


def test_a_folder_without_models_is_worth_a_note(tmp_path: Path) -> None:
    folders = models.look([str(tmp_path)])
    launch = start(COMFY_MODELS=str(tmp_path), machine=dataclasses.replace(MACHINE, folders=folders))
    assert launch.files == ()
    assert "has no folders like checkpoints or loras" in launch.notes[0]


def test_files_are_written_and_others_read(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("x")
    files = [
        File(path=str(tmp_path / "c" / "paths.yaml"), purpose="p", origin="o", text="a: b\n"),
        File(path=str(tmp_path / "cert"), purpose="https", origin="COMFY_TLS_CERT"),
    ]
    for _ in range(2):
        directories.ready(files, MACHINE)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["paths.yaml"]
    assert (tmp_path / "c" / "paths.yaml").read_text() == "a: b\n"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    files = [
        File(path=str(tmp_path / "key"), purpose="https", origin="COMFY_TLS_KEY"),
        File(path=str(tmp_path), purpose="https", origin="COMFY_TLS_CERT"),
        File(path="/a\0b", purpose="https", origin="x"),
    ]
    with pytest.raises(MachineError) as caught:
        directories.ready(files, MACHINE)
    assert "key (COMFY_TLS_KEY, https) is not there, or no file: mount it" in caught.value.messages[0]
    assert "(COMFY_TLS_CERT, https) is not there" in caught.value.messages[1]
    assert len(caught.value.messages) == 3


def test_a_given_directory_is_never_made(tmp_path: Path) -> None:
    absent = tmp_path / "share"
    wanted = [Directory(path=str(absent), purpose="output", needs="write", given="COMFY_MODELS")]
    with pytest.raises(MachineError, match=r"\(COMFY_MODELS\) is not there, and no empty folder is made"):
        directories.prepare(wanted, MACHINE)
    assert not absent.exists()
    absent.mkdir()
    directories.prepare(wanted, MACHINE)


def test_serve_looks_at_the_folders(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "shared", "odd_kind")
    environ = {"COMFY_DATA": str(tmp_path / "data"), "COMFY_MODELS": str(root)}
    assert cli.main(["--json"], environ, layout) == 0
    assert f"{root}/odd_kind" in capsys.readouterr().out
