"""Python imports this at its start, since comfyrun puts its folder, which holds nothing else, on PYTHONPATH.

1. Packages of custom nodes, which lie on the data volume, come after those of the image: PYTHONPATH itself
   would put them before, and a node could then replace torch.
2. ComfyUI wraps its output streams and forgets that they were unbuffered: what a node prints would appear
   minutes later, when some buffer is full.
"""

# ruff: noqa: INP001  (an __init__.py would be one more thing to find there)

import importlib.machinery
import importlib.util
import os
import site
import sys


def _add_packages() -> None:
    folder = os.environ.get("COMFYRUN_PACKAGES", "")
    # Not for the system's own Python, nor for an environment that a node made for itself.
    if folder and sys.prefix == os.environ.get("COMFYRUN_VENV"):
        # One folder for each kind of Python: a volume may be used by several images.
        machine = f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"
        folder = os.path.join(folder, machine, "site-packages")  # noqa: PTH118  (pathlib would be imported for it)
        if os.path.isdir(folder):  # noqa: PTH112
            site.addsitedir(folder)


def _write_lines_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)


def _import_the_next_one() -> None:
    """The one that this file hides: Debian's, or a user's own further along PYTHONPATH."""
    here = os.path.dirname(__file__)  # noqa: PTH120
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [p for p in sys.path if p != here])
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_add_packages()
_write_lines_at_once()
_import_the_next_one()
