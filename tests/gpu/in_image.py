"""Run these tests inside an image, as it is: read-only, not root, without a network.

python tests/gpu/in_image.py IMAGE [--engine podman] [--keep] [-- pytest's own arguments]

pytest is not in the image. It is pure Python, so this environment's copy, which
was installed by hash, serves the image's Python as well and is mounted beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from results import worst

HERE = Path(__file__).resolve().parent
RUNNER = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
GPU = {"docker": ["--gpus", "all"], "podman": ["--device", "nvidia.com/gpu=all"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image")
    parser.add_argument("--engine", choices=sorted(GPU), default="docker")
    parser.add_argument("--keep", action="store_true", help="write bench/results/gpu-TAG.json and .md")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        folder.chmod(0o755)  # the container's user is another
        copy_runner(folder / "runner")
        (folder / "out").mkdir()
        (folder / "out").chmod(0o777)
        call = command(args.engine, args.image, folder, sys.argv[end + 1 :])
        print(f"+ {shlex.join(call)}", file=sys.stderr, flush=True)
        status = subprocess.run(call, check=False).returncode
        path = folder / "out" / "results.json"
        found = json.loads(path.read_text()) if path.exists() else {}
    if not found.get("machine"):
        print("no test ran: the container saw no GPU, or did not start", file=sys.stderr)
        return status or 1
    if args.keep:
        keep(f"gpu-{args.image.rpartition(':')[2]}", found)
    return status


def command(engine: str, image: str, folder: Path, arguments: list[str]) -> list[str]:
    """The whole call of the engine."""
    words = [engine, "run", "--rm", *GPU[engine], "--network", "none", "--read-only", "--tmpfs", "/tmp:exec"]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--volume", f"{HERE}:/t:ro", "--volume", f"{folder / 'runner'}:/runner:ro"]
    words += ["--volume", f"{folder / 'out'}:/out"]
    # Triton compiles the finer of SageAttention's ways to quantise at the first call.
    for setting in (
        "PYTHONPATH=/runner",
        "PYTHONDONTWRITEBYTECODE=1",
        "HOME=/tmp",
        "TRITON_CACHE_DIR=/tmp/triton",
    ):
        words += ["--env", setting]
    words += ["--env", f"IMGBUILD_IMAGE={image}", "--env", "IMGBUILD_GPU_RESULTS=/out/results.json"]
    words += ["--entrypoint", "python", image, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", "/t"]
    return [*words, "-q", "-ra", *arguments, "/t"]


def copy_runner(folder: Path) -> None:
    for name in RUNNER:
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)


def keep(name: str, found: dict[str, Any]) -> None:
    sys.path.append(str(HERE.parents[1] / "bench"))
    from output import keep as keep_result
    from output import table

    rows = worst(row for test in found["tests"] for row in test.get("figures", ()))
    columns = ("kernel", "type", "comparisons", "wrong", "max error", "of what is allowed", "cosine")
    cells = [
        (
            r["kernel"],
            r["dtype"],
            str(r["comparisons"]),
            str(r["wrong"]),
            f"{r['max_error']:.4f}",
            f"{r['share']:.0%}",
            f"{r['cosine']:.6f}",
        )
        for r in rows
    ]
    facts = {**found["machine"], **found["packages"], **found["counts"], "date": found["date"]}
    lines = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    text = f"# Kernels on a GPU, in {found['image']}\n\n{lines}\n{table(columns, cells, right=range(2, 7))}"
    keep_result(name, text, found)


if __name__ == "__main__":
    sys.exit(main())
