"""ComfyUI in this process, of the tree that is asked for; without one these tests are skipped.

IMGBUILD_TORCH names a site-packages folder with a CPU torch and ComfyUI's requirements (nothing, where the Python
that runs this has them itself), IMGBUILD_COMFYUI_TREES the unpacked trees. A process can hold one ComfyUI: the
first tree. `in_image.py` and `in_checkout.py` run these tests in an image and once for each tree.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NODES = Path(os.environ.get("IMGBUILD_DGLS_NODES") or ROOT / "nodes")

for folder in (HERE, ROOT / "tests" / "image"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _tree() -> Path | None:
    named = [Path(n) for n in os.environ.get("IMGBUILD_COMFYUI_TREES", "").split(os.pathsep) if n]
    return named[0] if named else None


@pytest.fixture(scope="session")
def tree() -> Path:
    found = _tree()
    if found is None:
        pytest.skip("no unpacked ComfyUI: IMGBUILD_COMFYUI_TREES names none")
    libraries = os.environ.get("IMGBUILD_TORCH", "")
    for folder in reversed(libraries.split(os.pathsep) if libraries else []):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch: IMGBUILD_TORCH names no site-packages with it")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [libraries, os.environ.get("PYTHONPATH", "")]))
    return found


@pytest.fixture(scope="session")
def version(tree: Path) -> tuple[int, ...]:
    text = (tree / "comfyui_version.py").read_text().rpartition("=")[2].strip().strip("\"'")
    return tuple(int(part) for part in text.split("."))


@pytest.fixture(scope="session")
def comfy(tree: Path) -> Any:
    """ComfyUI's `comfy`, on the CPU, and our package importable as `dgls`."""
    from tiny import comfy as imported

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they are imported
        found = imported(tree)
        import folder_paths  # noqa: F401

    if str(NODES) not in sys.path:
        sys.path.append(str(NODES))
    return found


@pytest.fixture(scope="session")
def models(tree: Path, comfy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models on disk: wan, wan-other, flux and a LoRA of each; ComfyUI finds them."""
    import folder_paths
    import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.main(tree, folder)
    for kind in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)
    return folder


@pytest.fixture
def dgls(comfy: Any) -> Iterator[Any]:
    """Our package, with nothing loaded before and after."""
    import dgls.nodes
    from comfy import model_management

    model_management.unload_all_models()
    yield dgls
    model_management.unload_all_models()
