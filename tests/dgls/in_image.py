"""Run the nodes' tests inside an image, as it is: read-only, not root, without a network, on its CPU.

python tests/dgls/in_image.py IMAGE [--engine podman] [--baked] [-- pytest's own arguments]

The nodes of this checkout are mounted over those in the image, unless --baked. pytest is not in the image: it is
pure Python, so this environment's copy serves the image's Python and is mounted beside it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image")
    parser.add_argument("--engine", choices=("docker", "podman"), default="docker")
    parser.add_argument("--baked", action="store_true", help="the nodes that are in the image")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        folder.chmod(0o755)  # the container's user is another
        copy_runner(folder)
        call = command(args.engine, args.image, folder, args.baked, sys.argv[end + 1 :])
        print(f"+ {shlex.join(call)}", file=sys.stderr, flush=True)
        return subprocess.run(call, check=False).returncode


def command(engine: str, image: str, runner: Path, baked: bool, arguments: list[str]) -> list[str]:
    """The whole call of the engine."""
    words = [engine, "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec,mode=1777"]
    words += ["--user", "4321:4321", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--volume", f"{runner}:/runner:ro"]
    for name in ("dgls", "image"):
        words += ["--volume", f"{ROOT / 'tests' / name}:/t/tests/{name}:ro"]
    if not baked:
        words += ["--volume", f"{ROOT / 'nodes'}:/opt/nodes:ro"]
    for setting in (
        "PYTHONPATH=/runner",
        "PYTHONDONTWRITEBYTECODE=1",
        "HOME=/tmp",
        "USER=tests",
        "OMP_NUM_THREADS=2",
        "OMP_WAIT_POLICY=passive",
        "IMGBUILD_COMFYUI_TREES=/opt/comfyui",
        "IMGBUILD_DGLS_NODES=/opt/nodes",
    ):
        words += ["--env", setting]
    words += ["--entrypoint", "python", image, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", "/t"]
    return [*words, "-q", "-ra", "-W", "error", *arguments, "/t/tests/dgls/nodes"]


def copy_runner(folder: Path) -> None:
    for name in RUNNER:
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)


if __name__ == "__main__":
    sys.exit(main())
