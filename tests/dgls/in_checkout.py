"""Run the nodes' tests against checkouts of ComfyUI, one process each: a process can hold one ComfyUI.

python tests/dgls/in_checkout.py TREE [TREE ...] [--libraries FOLDER[:FOLDER]] [-- pytest's own arguments]

--libraries names site-packages with torch and ComfyUI's requirements, for this Python; without it they are this
Python's own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE")
    parser.add_argument("--libraries", default="", metavar="FOLDER")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    worst = 0
    for tree in args.trees:
        if not (tree / "comfyui_version.py").is_file():
            parser.error(f"{tree} is no ComfyUI checkout: it has no comfyui_version.py")
        environ = {
            "IMGBUILD_COMFYUI_TREES": str(tree.resolve()),
            "IMGBUILD_TORCH": args.libraries,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "OMP_WAIT_POLICY": "passive",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[end + 1 :]]
        call.append(str(HERE / "nodes"))
        print(
            f"+ {' '.join(f'{k}={shlex.quote(v)}' for k, v in environ.items())} {shlex.join(call)}",
            file=sys.stderr,
        )
        worst = max(worst, subprocess.run(call, check=False, env=os.environ | environ).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
