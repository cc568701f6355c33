"""What `serve --print` says for each target and profile, with the real matrix and the real ComfyUIs' flags.

After a change that is meant: python tests/unit/comfyrun/golden/make.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from realimages import FALLBACK, GOLDEN, PINNED, image, profile_json, table, targets
from syntheticui import MACHINE, STRANGER, real_trees

from comfyrun import flags, report
from comfyrun.envfile import EnvFile
from comfyrun.launch import Launch, plan
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfyrun.launch import Machine


@dataclass(frozen=True, kw_only=True)
class Case:
    target: str
    profile: str = "default"
    what: str = ""
    version: str = PINNED
    environ: Mapping[str, str] = field(default_factory=dict)
    file_text: Mapping[str, str] | None = None
    arguments: tuple[str, ...] = ()
    machine: Machine = MACHINE
    memory: float | None = None
    display: bool = False
    dropped: Mapping[str, str] = field(default_factory=dict)
    json: bool = False

    @property
    def file(self) -> str:
        name = "-".join(filter(None, (self.target, self.profile, self.what)))
        return f"{name}.{'json' if self.json else 'txt'}"


def _each() -> list[Case]:
    return [Case(target=t, profile=p) for t in targets() for p in profile_json(t)["profiles"]]


CASES = [
    *_each(),
    Case(target="ada", what="12gb-display", memory=11.99, display=True),
    Case(target="ada", what="24gb", memory=23.99, display=True),
    Case(target="ada", profile="classic", what="low", environ={"COMFY_MEMORY": "low"}),
    Case(target="h100", what=FALLBACK, version=FALLBACK),
    Case(target="h100", what="cpu", arguments=("--cpu",)),
    Case(target="h100", what="stranger", environ={"HOME": "/"}, machine=STRANGER),
    Case(target="gb10", what="dropped", dropped={"sageattention": "it disagrees with SDPA by 0.9"}),
    Case(
        target="gb10",
        what="everything",
        json=True,
        environ={
            "COMFY_ARGS": "--preview-size 256 --database-url postgres://me:hunter2hunter2@db/comfy",
            "COMFY_ATTENTION": "flash",
            "COMFY_CORS": "*",
            "COMFY_MODELS": "/mnt/models:/mnt/extra.yaml",
            "COMFY_NODES": "off",
            "COMFY_OFFLINE": "on",
            "COMFY_SERVICE_HOST": "10.0.0.7",
            "COMFYUI_PORT": "9000",
            "CUDA_CACHE_DISABLE": "1",
            "WANTED_UID": "1024",
        },
        file_text={"COMFY_RESERVE_VRAM": "16", "COMFY_ATTENTION": "ck", "HF_TOKEN": "hf_0123456789abcdef"},
    ),
]


def launch_of(case: Case) -> Launch:
    file = None if case.file_text is None else EnvFile(path="/data/comfyrun.env", variables=case.file_text)
    return plan(
        image=image(case.target, case.version),
        table=table(case.version),
        layout=Layout(),
        environ={"COMFY_PROFILE": case.profile, **case.environ}
        if case.profile != "default"
        else case.environ,
        arguments=case.arguments,
        machine=case.machine,
        file=file,
        memory=case.memory,
        display=case.display,
        dropped=case.dropped,
    )


def shown(case: Case) -> str:
    launch = launch_of(case)
    return (report.as_json(launch) if case.json else report.as_text(launch)) + "\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_golden(case: Case) -> None:
    path = GOLDEN / case.file
    assert path.is_file(), "python tests/unit/comfyrun/golden/make.py"
    assert shown(case) == path.read_text(), "meant? python tests/unit/comfyrun/golden/make.py"


def test_no_golden_file_is_left_over() -> None:
    tables = {f"flags-{version}.json" for version in (PINNED, FALLBACK)}
    found = {p.name for p in GOLDEN.iterdir() if p.suffix in (".txt", ".json")}
    assert found == {case.file for case in CASES} | tables


@pytest.mark.parametrize("version", [PINNED, FALLBACK])
@pytest.mark.parametrize("target", targets())
def test_every_profile_and_tier_fits_the_flags(target: str, version: str) -> None:
    """As the build checks it, less the parser itself."""
    built, known = image(target, version), table(version)
    for tokens in [p.tokens for p in built.profiles.values()] + [t.tokens(display=True) for t in built.tiers]:
        assert known.parse(tokens, "profile")[1] == []


def test_the_fallback_starts_without_sage() -> None:
    assert "--use-sage-attention" in profile_json("h100")["profiles"]["default"]["flags"][0]
    for target in ("ada", "gb10", "h100"):
        for profile in profile_json(target, FALLBACK)["profiles"].values():
            assert ["--use-sage-attention"] not in profile["flags"]


@pytest.mark.parametrize("root", [pytest.param(p, id=p.name) for p in real_trees()] or [None])
def test_the_tables_are_those_of_the_real_trees(root: Path | None) -> None:
    if root is None:
        pytest.skip("no unpacked ComfyUI: IMGBUILD_COMFYUI_TREES names none")
    from golden.make import table_text, version

    assert json.loads(table_text(root)) == json.loads((GOLDEN / f"flags-{version(root)}.json").read_text())


@pytest.mark.parametrize("root", [pytest.param(p, id=p.name) for p in real_trees()] or [None])
@pytest.mark.parametrize("target", targets())
def test_the_real_parser_takes_every_launch(root: Path | None, target: str, tmp_path: Path) -> None:
    if root is None:
        pytest.skip("no unpacked ComfyUI: IMGBUILD_COMFYUI_TREES names none")
    from golden.make import version

    for case in (c for c in CASES if c.target == target and c.version == version(root)):
        assert flags.refusal(root, launch_of(case).argv[2:]) is None, case.file
