"""What compiling costs: across architectures beside under emulation, and flash-attn trimmed beside as it comes.

    python bench/kernels.py cross     the probe and one file of flash-attn for gb10, both ways, one after the other
    python bench/kernels.py trim      files of flash-attn for h100, as the recipe trims it and with `full: true`

Each compile runs alone, in the very stage in which kernels are compiled; the seconds are those of nvcc, without
the stage around it: of its processors (user and system), which other work on the machine changes little, and of the
clock. `cross` makes the emulated environment out of the same Dockerfile, told that the building
machine is an arm64 one: then uv, apt and every compiler run under QEMU.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import output

from imgbuild import bases, render
from imgbuild.engines.docker import Docker
from imgbuild.errors import BuildError
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import cache_dir, find_project
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.matrix import Matrix
    from imgbuild.plan import Plan
    from imgbuild.project import Project

_FLASH = "csrc/flash_attn/src"
_CROSS_FILE = f"{_FLASH}/flash_fwd_hdim32_fp16_sm80.cu"
_TRIM_FILES = {  # a forward file and a backward file, and how many of their kind there are
    f"{_FLASH}/flash_fwd_hdim32_fp16_sm80.cu": 48,
    f"{_FLASH}/flash_bwd_hdim32_fp16_sm80.cu": 24,
}
# What flash-attn's own setup.py gives to nvcc, and torch's includes.
_FLAGS = (
    "-O3 -std=c++17 -U__CUDA_NO_HALF_OPERATORS__ -U__CUDA_NO_HALF_CONVERSIONS__ -U__CUDA_NO_HALF2_OPERATORS__ "
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__ --expt-relaxed-constexpr --expt-extended-lambda --use_fast_math "
    "--compiler-options -fPIC"
)
_SITE = "/opt/venv/lib/python3.13/site-packages"
_INCLUDES = (
    f"-I/src/csrc/flash_attn -I/src/csrc/flash_attn/src -I/src/csrc/cutlass/include -isystem {_SITE}/torch/include "
    f"-isystem {_SITE}/torch/include/torch/csrc/api/include -isystem /opt/cuda/include -isystem /usr/include/python3.13"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cross", "trim"])
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    project = find_project(None, cwd=Path.cwd())
    with tempfile.TemporaryDirectory(prefix="imgbuild-bench-") as folder:
        bench = Bench(project, load_matrix(project.images), Path(folder))
        rows = cross(bench) if args.what == "cross" else trim(bench)
    text = (cross_text if args.what == "cross" else trim_text)(rows)
    print(text, end="")
    if args.keep:
        name, title = {
            "cross": ("kernels-cross", "Compiling for arm64 on x86_64"),
            "trim": ("kernels-trim", "flash-attn: for inference, and as it comes"),
        }[args.what]
        output.keep(
            name, f"# {title}\n\n{machine.markdown()}\n{text}", {"machine": machine.describe(), "rows": rows}
        )


class Bench:
    """Compile stages of a target with one more at their end, in which a command is timed."""

    def __init__(self, project: Project, matrix: Matrix, folder: Path) -> None:
        self.project, self.matrix, self.folder = project, matrix, folder
        self.settings = read_settings(os.environ)
        self.renderer = render.Renderer(project.templates)

    def plan(self, target: str, *, full: bool = False) -> Plan:
        """`full`: flash-attn as it comes."""
        matrix = self.matrix
        if full:
            flash = matrix.common.kernels["flash-attn"].model_copy(update={"full": True})
            kernels = {**matrix.common.kernels, "flash-attn": flash}
            common = matrix.common.model_copy(update={"kernels": kernels})
            matrix = matrix.model_copy(update={"common": common})
        return make_plan(self.project, matrix, matrix.targets[target])

    def timed(
        self, plan: Plan, name: str, commands: Mapping[str, str], *, emulated: bool = False
    ) -> dict[str, Any]:
        """Seconds, and bytes of /tmp/out, of each command, run one after the other in the kernels' environment."""
        files = self.renderer.context(plan)
        # A step out of the cache is timed by nobody, and what a killed run had begun BuildKit finishes and keeps.
        nonce = uuid.uuid4().hex
        steps = "".join(
            f"RUN --mount=type=bind,from=source-probe,source=/src,target=/probe "
            f": {nonce}; rm -f /tmp/out; begun=$(date +%s.%N); {command} && ended=$(date +%s.%N) && times > /tmp/times "
            f'&& echo "TIMED {label} $begun $ended $(stat -c %s /tmp/out) $(tail -n 1 /tmp/times)"\n'
            for label, command in commands.items()
        )
        files["Dockerfile"] += (
            f"\nFROM kernel-env AS bench\nCOPY --from=source-flash-attn /src /src\nWORKDIR /src\n{steps}"
        )
        work = self.folder / name
        render.write(files, work)
        bake = self._bake(plan, files["base-setup.sh"], work)
        if emulated:
            self._emulate(plan, bake, work)
        path = work / "bake.json"
        path.write_text(render.pretty(bake))
        argv = ["docker", "buildx", "bake", "--file", str(path), "--progress", "plain"]
        if Docker(os.environ).buildx_version() >= (0, 17):
            argv += ["--allow", "fs.read=/"]
        done = subprocess.run([*argv, "bench"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{name}: {done.stderr[-3000:]}")
        # `times` of a POSIX shell: minutes and seconds of its children, user and system.
        found = re.findall(
            r"TIMED (\S+) ([0-9.]+) ([0-9.]+) ([0-9]+) (\d+)m([0-9.]+)s (\d+)m([0-9.]+)s$",
            done.stderr,
            flags=re.MULTILINE,
        )
        return {
            label: {
                "cpu_seconds": round(60 * (int(um) + int(sm)) + float(us) + float(ss), 2),
                "seconds": round(float(ended) - float(begun), 2),
                "bytes": int(size),
            }
            for label, begun, ended, size, um, us, sm, ss in found
        }

    def _bake(self, plan: Plan, setup: str, work: Path) -> dict[str, Any]:
        local = bases.find_base(cache_dir(os.environ), plan.base, setup)
        secrets = []
        for name, text in {
            "machine": self.settings.secret(),
            "apt": "".join(f"{line}\n" for line in bases.machine_mirrors(plan.base.suite)),
        }.items():
            if text:
                (work / name).write_text(text)
                secrets.append(f"id={name},src={work / name}")
        if self.settings.ca_bundle:
            secrets.append(f"id=ca,src={self.settings.ca_bundle}")
        nothing = work / "nothing"
        nothing.mkdir(exist_ok=True)
        contexts = {"entrypoint": str(nothing), "nodes-src": str(nothing)}
        contexts |= {"probe-src": str(self.project.kernels / "probe"), "sageattention-src": str(nothing)}
        bake = render.bake_file(
            [plan],
            folder=str(self.folder),
            contexts=contexts,
            base_contexts={plan.base.name: local.context} if local else {},
            secrets=secrets,
        )
        entry = bake["target"][plan.name]
        entry |= {"context": str(work), "target": "bench", "tags": [], "output": ["type=cacheonly"]}
        return {"target": {"bench": entry}}

    @staticmethod
    def _emulate(plan: Plan, bake: dict[str, Any], work: Path) -> None:
        """The whole of the toolchain for and on the target's architecture; what is only installed stays native."""
        bench = bake["target"]["bench"]
        for stage in ("venv-nvidia", "venv-torch", "venv-tools", "source-probe", "source-flash-attn"):
            bake["target"][f"native-{stage}"] = {**bench, "target": stage, "context": str(work)}
        bake["target"]["bench"] = {
            **bench,
            "args": {**bench["args"], "BUILDPLATFORM": plan.platform, "BUILDARCH": plan.arch},
            "contexts": {
                **bench["contexts"],
                **{
                    n.removeprefix("native-"): f"target:{n}"
                    for n in bake["target"]
                    if n.startswith("native-")
                },
            },
        }


def nvcc(plan: Plan, words: str) -> str:
    tools = plan.toolchain
    assert tools is not None
    compiler = f"/usr/bin/{tools.triplet}-g++-{tools.gcc.partition('.')[0]}"
    return f"/opt/cuda/bin/nvcc -ccbin {compiler} {words}"


def gencode(plan: Plan, kernel: str) -> str:
    (code,) = next(k.code for k in plan.kernels if k.name == kernel)
    return f"-gencode arch={code.replace('sm', 'compute')},code={code}"


def flash_command(plan: Plan, file: str) -> str:
    flags = " ".join(next(k.flags for k in plan.kernels if k.name == "flash-attn"))
    return nvcc(plan, f"-c {file} -o /tmp/out {_FLAGS} {flags} {gencode(plan, 'flash-attn')} {_INCLUDES}")


def cross(bench: Bench) -> list[dict[str, Any]]:
    plan = bench.plan("gb10")
    probe = nvcc(
        plan,
        f"-O2 -std=c++17 -shared -Xcompiler -fPIC -cudart static {gencode(plan, 'probe')} -o /tmp/out /probe/probe.cu",
    )
    commands = {"probe": probe, Path(_CROSS_FILE).name: flash_command(plan, _CROSS_FILE)}
    native = bench.timed(plan, "cross", commands)
    emulated = bench.timed(plan, "emulated", commands, emulated=True)
    return [
        {
            "file": name,
            "cross": native[name],
            "emulated": emulated[name],
            "ratio": emulated[name]["cpu_seconds"] / native[name]["cpu_seconds"],
        }
        for name in commands
    ]


def cross_text(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        [
            f"`{r['file']}`",
            *(f"{r[way][unit]:.1f}" for way in ("cross", "emulated") for unit in ("cpu_seconds", "seconds")),
            f"{r['ratio']:.1f}",
        ]
        for r in rows
    ]
    return (
        output.table(
            ["file", "cross CPU s", "clock s", "emulated CPU s", "clock s", "emulated ÷ cross, CPU"],
            shown,
            right=(1, 2, 3, 4, 5),
        )
        + "\nFor gb10 (linux/arm64), nvcc 13.0; one compile at a time, both ways in one run.\n"
    )


def trim(bench: Bench) -> list[dict[str, Any]]:
    found = {}
    for name, full in (("trimmed", False), ("as it comes", True)):
        plan = bench.plan("h100", full=full)
        found[name] = bench.timed(
            plan, name.replace(" ", "-"), {Path(f).name: flash_command(plan, f) for f in _TRIM_FILES}
        )
    return [
        {"file": Path(f).name, "of its kind": n, **{name: rows[Path(f).name] for name, rows in found.items()}}
        for f, n in _TRIM_FILES.items()
    ]


def trim_text(rows: Sequence[Mapping[str, Any]]) -> str:
    def cells(name: str, r: Mapping[str, Any]) -> list[str]:
        return [f"{r[name]['cpu_seconds']:.1f}", output.megabytes(r[name]["bytes"])]

    shown = [
        [f"`{r['file']}`", str(r["of its kind"]), *cells("as it comes", r), *cells("trimmed", r)]
        for r in rows
    ]
    total = {
        name: (sum(r[name]["cpu_seconds"] for r in rows), sum(r[name]["bytes"] for r in rows))
        for name in ("as it comes", "trimmed")
    }
    before, after = total["as it comes"], total["trimmed"]
    return (
        output.table(
            ["file", "of its kind", "as it comes CPU s", "MB", "trimmed CPU s", "MB"],
            shown,
            right=(1, 2, 3, 4, 5),
        )
        + f"\nThese two: {before[0] / after[0]:.1f} × the CPU seconds and {before[1] / after[1]:.1f} × the bytes as it comes.\n"
        "For h100 (sm_90), one compile at a time; of one head size and type out of six and two. What is trimmed are dropout, alibi, softcap and windows\n"
        "in the forward files, and all of the backward ones, which become stubs.\n"
    )


if __name__ == "__main__":
    output.run(main)
