from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from syntheticui import MACHINE, PROFILE, make_tree

from comfyrun import flags, flagtable, profile
from comfyrun.launch import Launch, Machine, plan
from comfyrun.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# A machine that compiles at the same time is slow, not wrong.
hypothesis.settings.register_profile("comfyrun", deadline=None)
hypothesis.settings.load_profile("comfyrun")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def table(tree: Path) -> flagtable.FlagTable:
    return flags.read_table(tree)


@pytest.fixture(scope="session")
def image() -> profile.Image:
    return profile.parse(PROFILE, "profile.json")


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory, table: flagtable.FlagTable) -> Layout:
    """A baked /etc/comfyrun elsewhere."""
    etc = tmp_path_factory.mktemp("etc")
    (etc / "profile.json").write_text(json.dumps(PROFILE))
    (etc / "flags.json").write_text(json.dumps(flagtable.to_json(table)))
    return Layout(etc=etc)


@pytest.fixture
def start(image: profile.Image, table: flagtable.FlagTable) -> Callable[..., Launch]:
    """The pure function, with everything but its environment and arguments given."""

    def start(
        *arguments: str, env: Mapping[str, str] | None = None, machine: Machine = MACHINE, **changes: Any
    ) -> Launch:
        return plan(
            image=dataclasses.replace(image, **changes),
            table=table,
            layout=Layout(),
            environ=env or {},
            arguments=arguments,
            machine=machine,
        )

    return start
