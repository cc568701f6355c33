"""DGLS against the bus, and against the others: one command, JSON, a table and a picture.

    python bench/dgls.py --device cpu --quick      what CI runs: the same code on small stacks, no claim about speed
    python bench/dgls.py --keep                    everything, on the GPU there is; results to bench/results/
    python bench/dgls.py --parts probe,exact       some of it

Needs torch, and nothing of the tool's own packages. Parts: `probe` the bus, `exact` the same bits whatever the plan
and with every copy or compute delayed, `baselines` all methods with the same residents, `sweep` how much is offloaded
by slots and policy, `card` a small card emulated by a limit on this process. On a CPU copies and computes take turns,
so nothing can be hidden there: what is measured then is that it runs.
"""

# ruff: noqa: E402  (the paths come first)
from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
# The tool is not installed where torch is, and the node's own package needs ComfyUI: only its engine is taken.
sys.path += [str(ROOT / "build"), str(ROOT / "nodes" / "dgls")]

import dgls_checks as checks
import dgls_models as models
import dgls_plot
import machine
import output
import torch
from dgls_methods import BASELINES
from engine import Auto, Evenly, FirstLast, Indices, Session
from engine.errors import DglsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import Policy

PARTS = ("probe", "exact", "baselines", "sweep", "card")
POLICIES: dict[str, Policy] = {
    "planned": Auto(),
    "first/last": FirstLast(first=0, last=0),
    "evenly": Evenly(),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    shape: models.Shape
    dtype: str
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.shape.name} {self.dtype}, {self.tokens} tokens"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    cases: tuple[Case, ...]
    exact: Case
    offloaded: tuple[int, ...]
    slots: tuple[int, ...]
    passes: int
    probe: int
    card: int
    """Bytes of the emulated card."""


QUICK = Size(
    cases=(
        Case(shape=models.SMALL_FLUX, dtype="fp32", tokens=48),
        Case(shape=models.SMALL_WAN, dtype="fp32", tokens=48),
    ),
    exact=Case(shape=models.SMALL_FLUX, dtype="fp32", tokens=32),
    offloaded=(0, 50, 100),
    slots=(2, 3),
    passes=2,
    probe=64 << 20,
    card=0,
)
FULL = Size(
    cases=(
        *(Case(shape=models.FLUX, dtype="bf16", tokens=n) for n in (512, 4608, 9216)),
        Case(shape=models.FLUX, dtype="fp8", tokens=4608),
        *(Case(shape=models.WAN, dtype="bf16", tokens=n) for n in (2048, 8192, 32768)),
        Case(shape=models.WAN, dtype="fp8", tokens=8192),
    ),
    exact=Case(shape=models.SMALL_FLUX, dtype="bf16", tokens=256),
    offloaded=(0, 30, 50, 70, 100),
    slots=(2, 3, 4),
    passes=5,
    probe=1 << 30,
    card=12 << 30,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small stacks, few points")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write the picture here (SVG)")
    parser.add_argument("--keep", action="store_true", help="write all to bench/results/")
    args = parser.parse_args()
    parts = args.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # on a machine that does other things too, threads wait for each other
    size = QUICK if args.quick or device.type == "cpu" else FULL
    data = measure(device, size, parts, args.case)
    text = as_text(data)
    print(text, end="")
    if args.json:
        args.json.write_text(output.as_json(data))
    drawing = dgls_plot.picture(*plotted(data)) if data["sweep"] else ""
    if args.plot:
        args.plot.write_text(drawing)
    if args.keep:
        name = f"dgls-{'cpu' if device.type == 'cpu' else data['device']['name'].lower().replace(' ', '-')}"
        output.keep(name, text, data)
        (output.RESULTS / f"{name}.svg").write_text(drawing)


def measure(device: torch.device, size: Size, parts: Sequence[str], only: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        "machine": machine.describe(),
        "device": describe(device),
        "probe": None,
        "exact": [],
        "baselines": [],
        "sweep": [],
        "card": None,
    }
    if "probe" in parts:
        data["probe"] = checks.bandwidth(device, size.probe)
    if "exact" in parts:
        stack = models.make(size.exact.shape, size.exact.dtype)
        data["exact"] = checks.exactness(stack, device, size.exact.tokens)
    cases = [case for case in size.cases if only in case.name]
    # One stack of weights in memory at a time, for all token counts that run on it.
    for (shape, dtype), group in itertools.groupby(cases, key=lambda case: (case.shape, case.dtype)):
        if not {"baselines", "sweep", "card"} & set(parts):
            break
        stack = models.make(shape, dtype)
        for case in group:
            say(case.name)
            bench = Bench(stack, case, device, size)
            if "baselines" in parts:
                data["baselines"] += bench.baselines()
            if "sweep" in parts:
                data["sweep"] += bench.sweep()
            if "card" in parts and size.card and data["card"] is None and device.type == "cuda":
                data["card"] = bench.small_card(size.card)
        del stack
    return data


class Bench:
    """One case on one device."""

    def __init__(self, stack: models.Stack, case: Case, device: torch.device, size: Size) -> None:
        self.stack, self.case, self.device, self.size = stack, case, device, size
        self.inputs = stack.inputs(case.tokens, device)
        self.full = self.resident_seconds()

    def seconds(self, warm_up: int = 2) -> float:
        """Of one pass, the median of a few, after some that do not count."""

        def once() -> float:
            begun = time.perf_counter()
            checks.through(self.stack, self.inputs)
            checks.settle(self.device)
            return time.perf_counter() - begun

        with torch.inference_mode():
            for _ in range(warm_up):
                once()
            return statistics.median(once() for _ in range(self.size.passes))

    def resident_seconds(self) -> float | None:
        """None where the weights do not fit."""
        try:
            with BASELINES[0].use(self.stack.blocks, frozenset(), self.device):
                return self.seconds()
        except torch.OutOfMemoryError:
            return None

    def evenly(self, offloaded: int) -> frozenset[int]:
        sizes = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in self.stack.blocks]
        kept, passed = set(), 0.0
        for i, nbytes in enumerate(sizes):
            passed += nbytes * (100 - offloaded) / 100
            if passed >= nbytes / 2:
                kept.add(i)
                passed -= nbytes
        return frozenset(kept)

    def baselines(self) -> list[dict[str, Any]]:
        residents = self.evenly(50)
        rows = []
        for method in BASELINES:
            row: dict[str, Any] = {"case": self.case.name, "method": method.name, "what": method.what}
            why = method.why_not(self.device)
            if why:
                rows.append({**row, "why_not": why})
                continue
            say(f"  {method.name}")
            try:
                with warnings.catch_warnings(), method.use(self.stack.blocks, residents, self.device):
                    warnings.simplefilter("ignore")  # of other people's packages
                    seconds = self.seconds()
            except (torch.OutOfMemoryError, DglsError) as e:
                rows.append({**row, "why_not": f"out of memory: {str(e).splitlines()[0]}"})
                continue
            rows.append(
                {**row, "seconds": seconds, "of_resident": self.full / seconds if self.full else None}
            )
        synchronous = next(
            (r["seconds"] for r in rows if r["method"] == ".to() pinned" and "seconds" in r), None
        )
        for row in rows:
            if synchronous and "seconds" in row:
                row["of_synchronous"] = synchronous / row["seconds"]
        return rows

    def sweep(self) -> list[dict[str, Any]]:
        rows = []
        for offloaded in self.size.offloaded:
            for slots, name in itertools.product(self.size.slots, POLICIES):
                if offloaded in (0, 100) and (name != "planned" or slots != self.size.slots[0]):
                    continue  # there is one choice only
                rows.append(self.ours(offloaded, slots, name))
        return rows

    def ours(self, offloaded: int, slots: int, name: str) -> dict[str, Any]:
        largest = max(
            sum(p.numel() * p.element_size() for p in block.parameters()) for block in self.stack.blocks
        )
        budget = int(self.stack.nbytes * (100 - offloaded) / 100 * 1.001) + slots * (largest + (1 << 16))
        policy = POLICIES[name]
        if isinstance(policy, FirstLast):
            policy = Indices(layers=_ends(len(self.stack.blocks)))
        memory = _Memory(self.device)
        with Session(
            self.stack.blocks, device=self.device, budget=budget, policy=policy, slots=slots
        ) as session:
            session.attach()
            seconds = self.seconds(warm_up=4)  # the planner measures two, and moves what it moves
            memory.settled()
            with torch.inference_mode():
                session.trace()
                checks.through(self.stack, self.inputs)
                checks.through(self.stack, self.inputs)
            report = session.report()
            memory.read()
        metrics = report.metrics
        row: dict[str, Any] = {
            "case": self.case.name,
            "offloaded": offloaded,
            "really_offloaded": 1 - report.resident_bytes / sum(layer.bytes for layer in report.layers),
            "slots": slots,
            "policy": name,
            "seconds": seconds,
            "of_resident": self.full / seconds if self.full else None,
            "predicted_seconds": report.predicted_seconds,
            "device_bytes": report.resident_bytes + report.slot_bytes,
            "peak_bytes": memory.peak,
            "new_segments": memory.new_segments,
            "misses": report.misses,
            "timeline": [vars(span) for span in report.timeline],
        }
        if metrics:
            row |= {
                "stall": metrics.stall,
                "eta": metrics.eta,
                "eta_max": metrics.eta_max,
                "eta_of_max": metrics.eta / metrics.eta_max,
                "of_ideal": metrics.seconds / metrics.ideal_seconds,
                "bytes_per_second": metrics.bytes_per_second,
            }
        return row

    def small_card(self, nbytes: int) -> dict[str, Any]:
        """This process may use so much of the card and no more."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(nbytes / total, self.device)
        try:
            activations = int(1.5e9)
            with Session(self.stack.blocks, device=self.device, budget=nbytes - activations) as session:
                session.attach()
                seconds = self.seconds(warm_up=4)
                report = session.report()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        return {
            "what": f"emulated: {nbytes >> 30} GiB of this card",
            "case": self.case.name,
            "weights_bytes": self.stack.nbytes,
            "seconds": seconds,
            "of_resident": self.full / seconds if self.full else None,
            "device_bytes": report.resident_bytes + report.slot_bytes,
        }


class _Memory:
    """What the allocator did; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.peak: int | None = None
        self.new_segments: int | None = None
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self._device, self._segments = device, 0

    def settled(self) -> None:
        self._segments = self._count()

    def read(self) -> None:
        if self._cuda:
            self.peak = torch.cuda.max_memory_allocated(self._device)
            self.new_segments = self._count() - self._segments

    def _count(self) -> int:
        return int(torch.cuda.memory_stats(self._device)["segment.all.allocated"]) if self._cuda else 0


def _ends(count: int) -> tuple[int, ...]:
    """0, -1, 1, -2, …: as many as fit stay."""
    pairs = zip(range(count), range(count - 1, -1, -1), strict=True)
    return tuple(dict.fromkeys(i for pair in pairs for i in pair))


def describe(device: torch.device) -> dict[str, str]:
    about = {"type": device.type, "torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return {**about, "name": "CPU"}
    properties = torch.cuda.get_device_properties(device)
    return {
        **about,
        "name": properties.name,
        "memory": f"{properties.total_memory / 1e9:.0f} GB",
        "cuda": str(torch.version.cuda),
        "driver": machine._said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),  # noqa: SLF001
    }


# -- what people read -----------------------------------------------------------------------------
def as_text(data: dict[str, Any]) -> str:
    about = "".join(f"- {name}: {value}\n" for name, value in data["device"].items())
    parts = [f"# DGLS on {data['device']['name']}\n\n{machine.markdown()}{about}"]
    if data["device"]["type"] == "cpu":
        parts.append(
            "Copies and computes take turns on a CPU: these numbers prove that it runs, not how fast it is.\n"
        )
    if data["probe"]:
        probe = data["probe"]
        parts.append(
            f"One copy of {probe['bytes'] >> 20} MiB: {probe['pinned_bytes_per_second'] / 1e9:.1f} GB/s from pinned, "
            f"{probe['pageable_bytes_per_second'] / 1e9:.1f} GB/s from pageable memory.\n"
        )
    if data["exact"]:
        rows = [
            [r["device"], str(r["plans"]), str(r["passes"]), str(r["wrong"]), str(r["races"])]
            for r in data["exact"]
        ]
        columns = ["against everything resident, bit for bit", "plans", "passes", "wrong", "races"]
        parts.append(output.table(columns, rows, right=(1, 2, 3, 4)))
    if data["baselines"]:
        parts.append(_baselines_text(data["baselines"]))
    if data["sweep"]:
        parts.append(_sweep_text(data["sweep"]))
    if data["card"]:
        card = data["card"]
        parts.append(
            f"{card['what']}: {card['case']}, {card['weights_bytes'] / 1e9:.1f} GB of weights with "
            f"{card['device_bytes'] / 1e9:.1f} GB on the device: {_percent(card['of_resident'])} of resident speed.\n"
        )
    return "\n".join(parts)


def _baselines_text(rows: list[dict[str, Any]]) -> str:
    shown = [
        [
            row["case"],
            row["method"],
            f"{row['seconds'] * 1e3:.2f}" if "seconds" in row else "–",
            _percent(row.get("of_resident")),
            f"{row['of_synchronous']:.2f}" if "of_synchronous" in row else "–",
            row.get("why_not") or row["what"],
        ]
        for row in rows
    ]
    columns = ["half of the bytes offloaded", "method", "ms a pass", "of resident", "× .to() pinned", ""]
    return output.table(columns, shown, right=(2, 3, 4))


def _sweep_text(rows: list[dict[str, Any]]) -> str:
    shown = [
        [
            row["case"],
            f"{row['offloaded']} %",
            str(row["slots"]),
            row["policy"],
            f"{row['seconds'] * 1e3:.2f}",
            _percent(row["of_resident"]),
            _number(row.get("of_ideal")),
            _number(row.get("eta")),
            _number(row.get("eta_of_max")),
            f"{row['bytes_per_second'] / 1e9:.1f}" if row.get("bytes_per_second") else "–",
            output.megabytes(row["device_bytes"]),
            output.megabytes(row["peak_bytes"]),
            "–" if row["new_segments"] is None else str(row["new_segments"]),
        ]
        for row in rows
    ]
    columns = [
        "case",
        "offloaded",
        "slots",
        "policy",
        "ms a pass",
        "of resident",
        "T/T*",
        "η",
        "η/η_max",
        "GB/s",
    ]
    columns += ["weights MB", "peak MB", "new segments"]
    return output.table(columns, shown, right=tuple(range(4, 13)))


def plotted(data: dict[str, Any]) -> tuple[str, dict[str, list[tuple[float, float]]], list[dict[str, Any]]]:
    """The first case, at the smallest number of slots; its timeline at about half."""
    rows: list[dict[str, Any]] = data["sweep"]
    rows = [row for row in rows if row["case"] == rows[0]["case"] and row["slots"] == rows[0]["slots"]]
    lines: dict[str, list[tuple[float, float]]] = {
        name: [
            (100.0 * row["really_offloaded"], 100.0 * (row["of_resident"] or 0))
            for row in rows
            if row["policy"] == name or row["offloaded"] in (0, 100)
        ]
        for name in POLICIES
    }
    halves = [row for row in rows if row["offloaded"] == 50 and row["policy"] == "planned"]
    return f"{rows[0]['case']} on {data['device']['name']}", lines, halves[0]["timeline"] if halves else []


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    output.run(main)
