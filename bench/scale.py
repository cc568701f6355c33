"""How planning and rendering grow with the matrix, and how fast the command starts.

    python bench/scale.py                 10, 100 and 1000 synthetic targets
    python bench/scale.py --startup-only  only `imgbuild --help` beside `python -c "import click"`

The synthetic targets are copies of the real GPU targets under other names,
each with its own lock, so that every file is read and rendered for each.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import output
from scratch import copy_project, replace_in, tool_argv, tool_env

from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plans
from imgbuild.project import Project, find_project
from imgbuild.projections import committed_bake_file, target_files
from imgbuild.render import Renderer, pretty

MODELS = ("h100", "gb10", "ada")
SIZES = (10, 100, 1000)
STEPS = ("load_matrix", "make_plans", "target_files", "bake file")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument(
        "--repeat", type=int, default=3, help="the fastest of so many runs counts (default 3)"
    )
    parser.add_argument("--startup-runs", type=int, default=25)
    parser.add_argument("--startup-only", action="store_true")
    parser.add_argument("--project", type=Path, help="folder with images/")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    data: dict[str, Any] = {"startup": startup(args.startup_runs)}
    text = startup_text(data["startup"])
    if not args.startup_only:
        project = find_project(args.project, cwd=Path.cwd())
        data["growth"] = growth(project, sorted(args.sizes), args.repeat)
        text = f"{growth_text(data['growth'])}\n{text}"
    print(output.as_json(data) if args.json else text, end="")
    if args.keep:
        output.keep(
            "scale",
            f"# Planning, rendering, starting\n\n{machine.markdown()}\n{text}",
            {"machine": machine.describe(), **data},
        )


# --- growth ------------------------------------------------------------------------------------


def growth(project: Project, sizes: list[int], repeat: int) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="imgbuild-scale-") as folder:
            copy = synthetic(project, Path(folder) / "project", size)
            runs = [in_process(copy) for _ in range(repeat)]
            row: dict[str, Any] = {"targets": size}
            row["seconds"] = {step: min(run[step] for run in runs) for step in STEPS}
            row["total"] = min(sum(run.values()) for run in runs)
            row["cli"] = min(render_cli(copy, Path(folder) / "out") for _ in range(repeat))
        rows.append(row)
    for before, row in itertools.pairwise(rows):
        row["more_targets"] = row["targets"] / before["targets"]
        row["more_seconds"] = row["total"] / before["total"]
    return rows


def synthetic(project: Project, to: Path, size: int) -> Project:
    """A project with `size` targets and nothing but them."""
    copy = copy_project(project, to)
    targets = copy.images / "targets"
    texts = {name: (targets / f"{name}.yaml").read_text() for name in MODELS}
    locks = {name: sorted(copy.locks.glob(f"{name}-*.txt")) for name in MODELS}
    for path in targets.iterdir():
        path.unlink()
    for i in range(size):
        model = MODELS[i % len(MODELS)]
        name = f"{model}-{i:04}"
        path = targets / f"{name}.yaml"
        path.write_text(texts[model])
        replace_in(path, f"\nname: {model}\n", f"\nname: {name}\n")
        for lock in locks[model]:
            shutil.copyfile(lock, copy.locks / lock.name.replace(model, name, 1))
    return copy


def in_process(project: Project) -> dict[str, float]:
    """Seconds of each step from YAML to text, all in memory."""
    marks = [time.perf_counter()]
    matrix = load_matrix(project.images)
    marks.append(time.perf_counter())
    plans = make_plans(project, matrix, tuple(matrix.targets.values()))
    marks.append(time.perf_counter())
    target_files(plans, Renderer(project.templates))
    marks.append(time.perf_counter())
    pretty(committed_bake_file(plans))
    marks.append(time.perf_counter())
    return {step: marks[i + 1] - marks[i] for i, step in enumerate(STEPS)}


def render_cli(project: Project, to: Path) -> float:
    """Seconds of `imgbuild render -o DIR` as a process, into an empty folder."""
    shutil.rmtree(to, ignore_errors=True)
    argv = tool_argv("--project", project.root, "render", "-o", to)
    begun = time.perf_counter()
    subprocess.run(argv, env=tool_env(), check=True, capture_output=True)
    return time.perf_counter() - begun


def growth_text(rows: list[dict[str, Any]]) -> str:
    shown = [
        [
            str(r["targets"]),
            *(f"{r['seconds'][step]:.3f}" for step in STEPS),
            f"{r['total']:.3f}",
            f"{r['total'] / r['targets'] * 1000:.2f}",
            f"× {r['more_seconds']:.1f} for × {r['more_targets']:g}" if "more_seconds" in r else "–",
            f"{r['cli']:.2f}",
        ]
        for r in rows
    ]
    columns = ["targets", *(f"{s} s" for s in STEPS), "all s", "ms a target", "growth", "`render -o DIR` s"]
    return output.table(columns, shown, right=(0, 1, 2, 3, 4, 5, 6, 8))


# --- startup -----------------------------------------------------------------------------------


def startup(runs: int) -> dict[str, Any]:
    """Both commands as whole processes, in turns, so that a busy moment hits both."""
    ours, bare = tool_argv("--help"), [sys.executable, "-c", "import click"]
    seconds: dict[str, list[float]] = {"imgbuild --help": [], 'python -c "import click"': []}
    env = tool_env()
    for argv in (ours, bare):  # once unmeasured: bytecode and page cache
        subprocess.run(argv, env=env, check=True, capture_output=True)
    for _ in range(runs):
        for times, argv in zip(seconds.values(), (ours, bare), strict=True):
            begun = time.perf_counter()
            subprocess.run(argv, env=env, check=True, capture_output=True)
            times.append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    tool, click = medians.values()
    return {
        "runs": runs,
        "median_seconds": medians,
        "fastest_seconds": {name: min(times) for name, times in seconds.items()},
        "ratio": tool / click,
    }


def startup_text(data: dict[str, Any]) -> str:
    rows = [
        [f"`{name}`", f"{median * 1000:.0f}", f"{data['fastest_seconds'][name] * 1000:.0f}"]
        for name, median in data["median_seconds"].items()
    ]
    table = output.table(["whole process", "median ms", "fastest ms"], rows, right=(1, 2))
    return f"{table}\n{data['ratio']:.2f} × bare click (medians of {data['runs']} runs each, in turns).\n"


if __name__ == "__main__":
    output.run(main)
