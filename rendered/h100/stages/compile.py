"""Runs in the target's own environment: a kernel's unpatched setup.py, with compilers at full speed.

Under emulation this program and setup.py are emulated; nvcc and g++ are programs
of the building machine and are not.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from measure import measured

SRC = Path("/src")
BUILD = SRC / "build"  # a cache: what is compiled already stays when a later file fails
OUT = Path("/out")
WORK = Path("/tmp/wheel")
NVCC = Path("/tmp/nvcc")
BUDGET = Path("/run/secrets/budget")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epoch", required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--triplet", required=True)
    parser.add_argument("--gcc", required=True)
    args = parser.parse_args()
    recipe = json.loads(args.recipe.read_text())
    shutil.copyfile("/tmp/stages/gate.sh", NVCC)  # bound files carry no executable bit
    NVCC.chmod(0o755)
    compiler = f"/usr/bin/{args.triplet}-g++-{args.gcc.partition('.')[0]}"
    flags = " ".join(recipe["flags"])
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    env = {
        "HOME": "/tmp",
        "PATH": "/opt/venv/bin:/opt/cuda/bin:/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": args.epoch,
        "CUDA_HOME": "/opt/cuda",
        "CC": compiler,
        "CXX": compiler,
        # torch's own hook for a compiler in front of nvcc: it waits for its turn.
        "PYTORCH_NVCC": str(NVCC),
        **recipe["environment"],
        **budget.get(recipe["name"], {}),
    }
    if flags:  # each of the two compilers has a variable of its own
        env |= {"NVCC_APPEND_FLAGS": flags, "CFLAGS": flags, "CXXFLAGS": flags}
    status, record = measured(
        [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(WORK)], cwd=SRC, env=env
    )
    if status:
        sys.exit(status)
    (wheel,) = WORK.glob("*.whl")
    OUT.mkdir()
    shutil.copyfile(wheel, OUT / wheel.name)
    (OUT / "build.json").write_text(json.dumps(record))
    for path in BUILD.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.utime(OUT / wheel.name, (int(args.epoch),) * 2)


if __name__ == "__main__":
    main()
