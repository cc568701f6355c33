"""What must be true of the package as a whole, since it runs in an image that has only Python."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import comfyrun
from comfyrun.layout import Layout

PACKAGE = Path(comfyrun.__file__).parent
ENTRYPOINT = PACKAGE.parent


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_it_imports_only_the_standard_library(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
    assert found <= {*sys.stdlib_module_names, "comfyrun"}


def test_the_launcher() -> None:
    launcher = ENTRYPOINT / "bin" / "comfyrun"
    text = launcher.read_text()
    assert os.access(launcher, os.X_OK)
    assert text.startswith(f"#!{Layout().python} -IS\n")
    # As the image runs it, but from this checkout.
    script = text.replace('"/opt/comfyrun"', repr(str(ENTRYPOINT)))
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script, "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"comfyrun {comfyrun.__version__}\n"), done.stderr


def test_health_stays_quick_to_import() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ENTRYPOINT)!r}); import comfyrun.cli, comfyrun.health; "
        "print(*sorted(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"argparse", "http.client", "ssl", "comfyrun.flagtable", "difflib"} & set(loaded)


def test_the_baked_nodes_are_announced() -> None:
    value = yaml.safe_load((ENTRYPOINT / "etc" / "extra_model_paths.yaml").read_text())
    assert value == {"comfyrun_baked": {"base_path": "/opt", "custom_nodes": "nodes/"}}
