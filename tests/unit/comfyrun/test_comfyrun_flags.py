from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from syntheticui import CLI_ARGS, PROFILE, make_tree, real_trees

from comfyrun import flags, flagtable
from comfyrun.errors import ConfigError
from comfyrun.flagtable import Flag, FlagTable

if TYPE_CHECKING:
    from _pytest.capture import CaptureFixture


def bake(tree: Path, tmp_path: Path, **profiles: Any) -> tuple[int, Path]:
    value = copy.deepcopy(PROFILE)
    if profiles:
        value["profiles"] = profiles
    (tmp_path / "profile.json").write_text(json.dumps(value))
    output = tmp_path / "flags.json"
    arguments = ["--tree", str(tree), "--profile", str(tmp_path / "profile.json"), "-o", str(output)]
    return flags.main(arguments), output


def profile_with(*given: list[str]) -> dict[str, Any]:
    return {"environment": {}, "flags": list(given)}


def test_the_table_holds_what_the_parser_knows(table: FlagTable) -> None:
    def of(name: str) -> Flag:
        found = table.get(name)
        assert found is not None
        return found

    assert of("--listen") == Flag(names=("--listen",), arity="?", default="127.0.0.1", const="0.0.0.0,::")
    assert of("--port") == Flag(names=("--port",), arity=1, type="int", default=8188)
    assert of("--cpu").arity == 0
    assert of("--user-directory").type == "directory"
    assert of("--preview-method").choices == ("none", "auto")
    assert of("--preview-method").default == "none"
    assert of("--fast").choices == ("fp16_accumulation", "fp8_matrix_mult")
    assert of("--offline") is of("--disable-api-nodes")
    assert of("--pair").arity == 2
    assert of("--rest").arity == "*"
    assert of("--extra-model-paths-config").repeats
    assert of("--verbose").repeats
    assert not of("--cache-ram").repeats
    assert "--help" not in table
    assert ("--gpu-only", "--highvram", "--cpu") in table.exclusive


def test_the_table_survives_json(table: FlagTable) -> None:
    again = flagtable.from_json(json.loads(json.dumps(flagtable.to_json(table))))
    plain = [flag for flag in again.flags if flag.names != ("--colour",)]
    assert plain == [flag for flag in table.flags if flag.names != ("--colour",)]
    assert again.exclusive == table.exclusive


def test_baking_is_deterministic_and_leaves_the_tree_alone(tree: Path, tmp_path: Path) -> None:
    before = sorted(tree.rglob("*"))
    code, output = bake(tree, tmp_path)
    first = output.read_bytes()
    assert (code, bake(tree, tmp_path)[0]) == (0, 0)
    assert output.read_bytes() == first
    assert sorted(tree.rglob("*")) == before
    assert not {"comfy", "comfy.options"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cpu-offload"], "this ComfyUI has no flag --cpu-offload: it never had"),
        (["--dev"], "this ComfyUI has no flag --dev: it never had"),
        (["--normalvram"], "this ComfyUI has no flag --normalvram: it is what ComfyUI does by itself"),
        (["--gpu-onl"], "this ComfyUI has no flag --gpu-onl (did you mean --gpu-only?)"),
        (["--cpu", "3"], "'3' belongs to no flag"),
        (["--cpu=3"], "--cpu takes no value, got '3'"),
        (["stray"], "'stray' belongs to no flag"),
        (["--reserve-vram"], "--reserve-vram takes one value, got none"),
        (["--reserve-vram", "lots"], "--reserve-vram 'lots' is not a number"),
        (["--port", "1.5"], "--port '1.5' is not a whole number"),
        (["--pair", "1"], "--pair takes 2 values, got '1'"),
        (["--extra-model-paths-config"], "--extra-model-paths-config takes at least one value, got none"),
        (["--fast", "fp16_accumulatio"], "(did you mean fp16_accumulation?)"),
        (["--cache-ram", "1", "2", "3"], "ComfyUI's parser refuses it"),
    ],
)
def test_a_mistake_in_a_profile_fails_the_build(
    tree: Path, tmp_path: Path, capsys: CaptureFixture[str], given: list[str], message: str
) -> None:
    code, output = bake(tree, tmp_path, default=profile_with(), classic=profile_with(given))
    assert code == 2
    assert not output.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("comfyrun.flags: target h100: profile classic: ")
    assert message in line


def test_one_message_for_each_mistake(tree: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    bad = profile_with(["--cpu-offload", "a", "b"], ["--dev"], ["--gpu-only"], ["--highvram"], ["--cpu"])
    assert bake(tree, tmp_path, classic=bad, other=profile_with(["--dev"]))[0] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert "profile classic: --gpu-only and --highvram exclude each other" in lines[2]
    assert "profile other: this ComfyUI has no flag --dev" in lines[5]


def test_a_mistake_in_a_tier_fails_the_build(
    tree: Path, tmp_path: Path, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = {
        "name": "12gb",
        "at_least_gb": 8,
        "flags": [["--reserve-vram", "1"]],
        "with_display": [["--normalvram"]],
    }
    monkeypatch.setitem(PROFILE, "tiers", [tier])
    assert bake(tree, tmp_path)[0] == 2
    assert "target h100: tier 12gb: this ComfyUI has no flag --normalvram" in capsys.readouterr().err
    monkeypatch.setitem(PROFILE, "tiers", [{**tier, "with_display": [["--highvram"]]}])
    assert bake(tree, tmp_path)[0] == 0, "it takes the place of --gpu-only"


def test_accepted_profiles_are_named(tree: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    directory = profile_with(["--user-directory", "/data/elsewhere"])  # not there while the image is built
    assert bake(tree, tmp_path, default=directory)[0] == 0
    assert "profiles accepted: default" in capsys.readouterr().out


def test_a_tree_without_the_flags_comfyrun_needs(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    old = make_tree(tmp_path / "old", CLI_ARGS.replace("--base-directory", "--bass-directory"))
    assert bake(old, tmp_path)[0] == 2
    assert "has no flag --base-directory (did you mean --bass-directory?), which comfyrun needs" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("cli_args", "message"),
    [
        ("parser = 3", "has no `parser`"),
        ("import torch_of_another_world", "ModuleNotFoundError: No module named 'torch_of_another_world'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "it exits without a word"),
    ],
)
def test_a_broken_tree(tmp_path: Path, capsys: CaptureFixture[str], cli_args: str, message: str) -> None:
    assert bake(make_tree(tmp_path / "tree", cli_args), tmp_path)[0] == 2
    assert message in capsys.readouterr().err


def test_no_tree_at_all(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    assert bake(tmp_path, tmp_path)[0] == 2
    assert "is no ComfyUI tree" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tree: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    (tmp_path / "flags.json").mkdir()
    assert bake(tree, tmp_path)[0] == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "broken",
    [
        {"flags": 3, "exclusive": []},
        {"flags": [{"names": []}], "exclusive": []},
        {"exclusive": []},
        {"flags": [{"names": [], "arity": 0, "type": "str", "choices": None}], "exclusive": []},
        {"flags": [{"names": ["--x"], "arity": "!", "type": "str", "choices": None}], "exclusive": []},
        {"flags": [{"names": ["--x"], "arity": 0, "type": "bool", "choices": None}], "exclusive": []},
        {"flags": [{"names": ["--x"], "arity": 0, "type": "str", "choices": 3}], "exclusive": []},
    ],
)
def test_a_broken_table(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"schema": 1, **broken}))
    with pytest.raises(ConfigError, match="is not a table of flags"):
        flagtable.read(path)


@pytest.mark.parametrize("root", [pytest.param(p, id=p.name) for p in real_trees()] or [None])
def test_a_real_tree(root: Path | None, tmp_path: Path) -> None:
    if root is None:
        pytest.skip("no unpacked ComfyUI: IMGBUILD_COMFYUI_TREES names none")
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    output = tmp_path / "flags.json"
    # A process of its own, which could not import torch if it wanted to.
    script = f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(Path(flags.__file__).parents[1])!r})"
    script += "; from comfyrun.flags import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        script,
        "--tree",
        str(root),
        "--profile",
        str(profile),
        "-o",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = flagtable.read(output)
    assert len(table.flags) > 80
    assert "--database-url" in table
    assert any({"--gpu-only", "--cpu"} <= set(group) for group in table.exclusive)
    assert flags.refusal(root, ["--cpu", "--listen", "--fast", "fp16_accumulation"]) is None
    assert flags.refusal(root, ["--cpu", "--gpu-only"]) is not None
