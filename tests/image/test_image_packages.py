"""What is installed: every locked package at its locked version, as its wheel brought it, and it can be imported."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from imgbuild.plan import Plan

pytestmark = pytest.mark.ring1

# Debian's, which python3-venv puts beside ours.
_DEBIANS = {"pip", "setuptools", "wheel"}
# Libraries only, or data only: there is nothing to import.
_NO_CODE = re.compile(
    r"^(nvidia-|cuda-|triton$|comfyui-workflow-templates|comfyui-frontend|comfyui-embedded)"
)
_GPU_ONLY = re.compile(
    r"libcuda\.so\.1|libnvidia|no NVIDIA driver|CUDA driver|No CUDA GPUs|libcudart|NVIDIA driver"
)


def test_a_package_is_the_locked_one(package: str, look_inside: dict[str, Any], plan: Plan) -> None:
    """Installed once, in the version that the lock names."""
    assert look_inside["versions"].get(package) == [plan.packages[package]]


def test_a_package_can_be_imported(package: str, imports: dict[str, Any], plan: Plan) -> None:
    entry = imports.get(package)
    assert entry is not None, "it is not installed"
    assert not entry["errors"], entry["errors"]
    assert entry["modules"] or _NO_CODE.match(package), "nothing of it can be imported"


def test_a_kernel_can_be_imported(kernel: str, imports: dict[str, Any], plan: Plan) -> None:
    """On a machine without a GPU a kernel may ask for the driver, and for nothing else."""
    (found,) = (k for k in plan.kernels if k.name == kernel)
    entry = imports.get(found.distribution)
    assert entry is not None, "it is not installed"
    assert [error for error in entry["errors"] if not _GPU_ONLY.search(error)] == []


def test_nothing_else_is_installed(look_inside: dict[str, Any], plan: Plan) -> None:
    known = plan.packages.keys() | {k.distribution for k in plan.kernels} | _DEBIANS
    assert sorted(look_inside["versions"].keys() - known) == []


def test_its_constraints_are_the_plans(look_inside: dict[str, Any], plan: Plan) -> None:
    """What custom nodes are installed under: no node may replace what is here."""
    assert look_inside["constraints"] == plan.constraints()


def test_torch_is_what_its_wheel_brought(hashes: dict[str, Any]) -> None:
    """Every file of torch has the hash of its wheel's RECORD: nothing replaced a part of it."""
    entry = hashes["packages"]["torch"]
    assert (entry["wrong"], entry["missing"]) == ([], [])
    assert entry["files"] > 1000


def test_every_package_is_what_its_wheel_brought(hashes: dict[str, Any], plan: Plan) -> None:
    """Every file of every package, but those that the matrix says it edits, has the hash of its RECORD."""
    found = []
    packages = hashes["packages"]
    for name in sorted(packages.keys() - _DEBIANS):
        edits = [e for e in plan.edits if e["package"] == name]
        changed = {e["file"] for e in edits if e.get("file")}
        removed = [pattern for e in edits for pattern in e.get("remove") or ()]
        found += [f"{name}: {file} is another" for file in packages[name]["wrong"] if file not in changed]
        found += [
            f"{name}: {file} is gone"
            for file in packages[name]["missing"]
            if not any(fnmatch.fnmatch(file, pattern) for pattern in removed)
        ]
    assert found == []


def test_bytecode_is_of_its_source(hashes: dict[str, Any]) -> None:
    """What Python runs is what stands in the files: an image's bytecode is not looked at again when it is loaded."""
    assert hashes["bytecode"]["stale"] == []
    assert hashes["bytecode"]["files"] > 1000


def test_its_python_is_the_targets(look_inside: dict[str, Any], plan: Plan) -> None:
    assert look_inside["python"].startswith(f"{plan.base.python}.")
