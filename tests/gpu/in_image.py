"""Run these tests inside an image, as it is: read-only, not root, without a network.

python tests/gpu/in_image.py IMAGE [--engine podman] [--keep] [-- pytest's own arguments]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import worst

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import runner  # noqa: E402

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
        runner.copy_packages(runner.PYTEST, folder / "runner")
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
    # Triton compiles the finer of SageAttention's ways to quantise at the first call.
    settings = {
        "TRITON_CACHE_DIR": "/tmp/triton",
        "IMGBUILD_IMAGE": image,
        "IMGBUILD_GPU_RESULTS": "/out/results.json",
    }
    words = [engine, "run", *GPU[engine], *runner.locked_down(folder / "runner", settings)]
    words += ["--volume", f"{HERE}:/t:ro", "--volume", f"{folder / 'out'}:/out"]
    return [*words, *runner.pytest_words(image), *arguments, "/t"]


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
