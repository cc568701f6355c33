"""Run the tests of the engine and the nodes inside an image, as it is: read-only, not root, without a network, on its CPU.

python tests/dgls/in_image.py IMAGE [--engine podman] [--baked] [-- pytest's own arguments]

The nodes of this checkout are mounted over those in the image, unless --baked. pytest is not in the image: this
environment's copy, which is pure Python, is mounted beside it. hypothesis is made for one version of Python: where
the image has another, the engine's tests are left out, and it is said.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

import runner  # noqa: E402


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
        runner.copy_packages((*runner.PYTEST, "hypothesis", "sortedcontainers"), folder)
        call = command(args.engine, args.image, folder, args.baked, sys.argv[end + 1 :])
        print(f"+ {shlex.join(call)}", file=sys.stderr, flush=True)
        return subprocess.run(call, check=False).returncode


def fits(engine: str, image: str) -> bool:
    """Whether what is compiled for this Python works in the image's."""
    ask = "import sys; print(*sys.version_info[:2], sys.platform)"
    call = [engine, "run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", ask]
    said = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
    return said == [str(sys.version_info[0]), str(sys.version_info[1]), sys.platform]


def command(engine: str, image: str, folder: Path, baked: bool, arguments: list[str]) -> list[str]:
    """The whole call of the engine."""
    settings = {
        "USER": "tests",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "IMGBUILD_COMFYUI_TREES": "/opt/comfyui",
        "IMGBUILD_DGLS_NODES": "/opt/nodes",
    }
    words = [engine, "run", *runner.locked_down(folder, settings), "--user", "4321:4321"]
    for name in ("dgls", "image"):
        words += ["--volume", f"{ROOT / 'tests' / name}:/t/tests/{name}:ro"]
    if not baked:
        words += ["--volume", f"{ROOT / 'nodes'}:/opt/nodes:ro"]
    tests = ["/t/tests/dgls/nodes"]
    if fits(engine, image):
        tests.append("/t/tests/dgls/engine")
    else:
        print("left out: the engine's tests, since hypothesis here is for another Python", file=sys.stderr)
    return [*words, *runner.pytest_words(image), "-W", "error", *arguments, *tests]


if __name__ == "__main__":
    sys.exit(main())
