"""Runs in the target's own environment: the wheel installs, and what its recipe names imports."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path("/out")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--triplet", required=True)
    parser.add_argument("--gcc", required=True)
    args = parser.parse_args()
    recipe = json.loads(args.recipe.read_text())
    (wheel,) = OUT.glob("*.whl")
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        driver(site, Path(work), f"{args.triplet}-g++-{args.gcc.partition('.')[0]}", args.triplet)
        env = {**os.environ, "PYTHONPATH": str(site), "LD_LIBRARY_PATH": work, "PYTHONDONTWRITEBYTECODE": "1"}
        program = "import importlib, sys\nfor n in sys.argv[1:]:\n    importlib.import_module(n)\n    print('imported', n)"
        # Every extension by itself too: packages hide one that does not load behind a bare except.
        extensions = sorted(
            ".".join((*p.relative_to(site).parts[:-1], p.name.partition(".")[0]))
            for p in site.rglob("*.so")
            if ".cpython-" in p.name or ".abi3." in p.name
        )
        names = dict.fromkeys([*recipe["imports"], *extensions])
        done = subprocess.run([sys.executable, "-c", program, *names], env=env, check=False)
    if done.returncode:
        sys.exit(f"{wheel.name} does not import: what it says is above")


def driver(site: Path, work: Path, compiler: str, triplet: str) -> None:
    """A building machine has no NVIDIA driver: an empty one with just the names that the libraries ask for."""
    names: set[str] = set()
    for library in site.rglob("*.so"):
        done = subprocess.run(
            [f"{triplet}-nm", "--dynamic", "--undefined-only", str(library)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        names.update(re.findall(r" U (cu[A-Z]\w*)$", done.stdout, flags=re.MULTILINE))
    source = work / "driver.c"
    source.write_text(
        "".join(f"int {name}(void) {{ return 100; }} /* CUDA_ERROR_NO_DEVICE */\n" for name in sorted(names))
    )
    library = work / "libcuda.so.1"
    command = [
        compiler,
        "-x",
        "c",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        "-Wl,-soname,libcuda.so.1",
        str(source),
    ]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
