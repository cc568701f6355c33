"""Imports every package of the image, in one process of the image's own Python, and prints what happened as JSON."""

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import sys
import time
import warnings

# Beside the code that somebody imports, wheels bring these at their top.
NOT_CODE = {
    "test",
    "tests",
    "testing",
    "docs",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "scripts",
    "bin",
    "share",
    "lib",
}


def modules(dist):
    """The names a package is imported by: its top_level.txt, else what lies at its top."""
    said = dist.read_text("top_level.txt")
    names = set(said.split()) if said else set()
    if not names:
        for file in dist.files or ():
            head, *rest = file.parts
            if rest and file.suffix in (".py", ".so") and head.isidentifier():
                names.add(head)
            elif not rest and file.suffix in (".py", ".so"):
                names.add(head.partition(".")[0])
    return sorted(n for n in names if n.isidentifier() and n not in NOT_CODE)


def main():
    found = {}
    warnings.simplefilter("ignore")
    sys.path = [p for p in sys.path if p]
    for dist in sorted(importlib.metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        name = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
        entry = {"modules": modules(dist), "errors": [], "seconds": 0.0}
        begin = time.monotonic()
        for module in entry["modules"]:
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    importlib.import_module(module)
            except BaseException as error:  # noqa: BLE001  (whatever it raises, it cannot be imported)
                entry["errors"].append(f"{module}: {type(error).__name__}: {error}"[:500])
        entry["seconds"] = round(time.monotonic() - begin, 2)
        found[name] = entry
    return found


result = main()
sys.stdout.write("\n=== imports ===\n")
json.dump(result, sys.stdout)
sys.stdout.flush()
os._exit(0)  # what a package registered for the end has nothing to do with importing it
