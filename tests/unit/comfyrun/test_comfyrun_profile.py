from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from syntheticui import PROFILE

from comfyrun import profile
from comfyrun.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read(tmp_path: Path, text: str) -> profile.Image:
    path = tmp_path / "profile.json"
    path.write_text(text)
    return profile.read(path)


def test_a_profile_without_a_gpu(tmp_path: Path) -> None:
    value = {**PROFILE, "cuda": None, "compute_capability": None, "memory": None}
    image = read(tmp_path, json.dumps(value))
    assert (image.target, image.cuda, image.memory) == ("h100", None, None)
    assert image.profiles["default"].tokens == (
        "--use-sage-attention",
        "--gpu-only",
        "--reserve-vram",
        "8",
    )


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing: it is written when the image is built"):
        profile.read(tmp_path / "profile.json")


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        profile.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "has no schema number"),
        ('{"schema": true}', "has no schema number"),
        ('{"schema": 2}', "schema 2, this comfyrun reads schema 1: the file is newer"),
        ('{"schema": 0}', "the file is older"),
        ('{"schema": 1}', "target must be a text"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": 2}, "torch must be a text"),
        ({"cuda": 13.0}, "cuda must be a text"),
        ({"profiles": {}}, "at least one profile"),
        ({"profiles": []}, "at least one profile"),
        ({"profiles": {"default": 3}}, "profiles.default must be an object"),
        ({"profiles": {"default": {"environment": {"A": 1}}}}, "profiles.default.environment must map"),
        ({"profiles": {"default": {"flags": ["--cpu"]}}}, "profiles.default.flags must be a list"),
        ({"profiles": {"default": {"flags": [[]]}}}, "profiles.default.flags must be a list"),
        ({"tiers": {}}, "tiers must be a list"),
        ({"tiers": [3]}, "tiers[0] must be an object"),
        ({"tiers": [{"name": "x"}]}, "tiers[0].at_least_gb must be a number of GiB"),
        ({"tiers": [{"name": "x", "at_least_gb": float("nan")}]}, "tiers[0].at_least_gb must be"),
        ({"tiers": [{"name": "x", "at_least_gb": 10**400}]}, "tiers[0].at_least_gb must be"),
        ({"tiers": [{"at_least_gb": 1}]}, "tiers[0].name must be a text"),
        ({"tiers": [{"name": "x", "at_least_gb": 1, "with_display": 1}]}, "tiers[0].with_display must be"),
        ({"nodes": "dgls"}, "nodes must be a list of texts"),
        ({"cautions": ["x"]}, "cautions must map"),
        ({"kernels": ["x"]}, "kernels must be an object"),
        ({"kernels": {"x": "1"}}, "kernels.x must be an object"),
        ({"kernels": {"x": {"key": "1"}}}, "kernels.x.version must be a text"),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    value = {**copy.deepcopy(PROFILE), **changes}
    with pytest.raises(ConfigError) as caught:
        profile.parse(value, "profile.json")
    assert message in str(caught.value)
