"""What the queue costs: jobs of a second through it, beside the same prompts posted to the same ComfyUI directly.

    python bench/queue_overhead.py comfyui:cpu --keep

One ComfyUI in a container, one Redis with an append-only file, one agent on this machine. Blocks in turns. Directly:
all prompts of a block are posted at once and wait in ComfyUI's own queue; from the first post until the last is in its
history. By the queue: all are submitted at once; from the first submission until the last is completed, with its output
in the storage. The work is a node that sleeps (--compute: computes on one thread) that long, and SaveImage.

The agent's time is told by step: what its main thread spends in each, with ComfyUI's work apart.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import logging
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import machine
import output
import queuelab

from comfywork.agent import Agent
from comfywork.broker import Broker, Submission
from comfywork.settings import Settings

_STEPS = {
    "ready": ("comfywork.comfy", "Comfy.ready"),
    "take": ("comfywork.lease", "Ledger.take"),
    "read": ("comfywork.agent", "fetch"),
    "where": ("comfywork.comfy", "Comfy.where"),
    "submit": ("comfywork.comfy", "Comfy.submit"),
    "follow": ("comfywork.comfy", "Comfy.follow"),
    "stage": ("comfywork.execution", "Execution._stored"),
    "seal": ("comfywork.lease", "Ledger.seal"),
    "publish": ("comfywork.execution", "Execution.publish"),
    "finish": ("comfywork.lease", "Ledger.finish"),
    "clean": ("comfywork.execution", "Execution.clean"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", default="comfyui:cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20, help="of a block of one-second jobs")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--compute", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.agent:
        agent(Path(args.agent))
    with tempfile.TemporaryDirectory() as lab:
        text, overhead = measured(args, Path(lab))
    print(text)
    if args.keep:
        (output.RESULTS / "queue-overhead.md").write_text(text)
    sys.exit(overhead > 0.05)


def measured(args: argparse.Namespace, lab: Path) -> tuple[str, float]:
    server = queuelab.Redis(lab / "redis").start()
    comfy = queuelab.Comfy(args.image, lab / "comfy").start()
    worker = queuelab.Agent(
        "bench",
        queuelab.environ(lab, server, comfy.port, "bench", COMFYWORK_OUTPUT=str(comfy.output)),
        lab / "agent.log",
        (__file__, "--agent", str(lab / "steps.json")),
    )
    with queuelab.removed(worker, comfy, server):
        queuelab.until(comfy.ready, 180, "ComfyUI takes prompts")
        worker.environ["PYTHONPATH"] += f":{Path(__file__).parent}:{queuelab.ROOT / 'build'}"
        worker.start()
        broker = Broker.of_environment(worker.environ)
        queuelab.until(broker.workers, 60, "the agent has said that it lives")
        rows: dict[str, dict[str, list[float]]] = {}
        for name, seconds, jobs in (("one second", args.seconds, args.jobs), ("tiny", 0.0, 5 * args.jobs)):
            found: dict[str, list[float]] = defaultdict(list)
            for number in range(args.rounds + 1):
                ways = (("direct", direct), ("queue", queued))
                for way, act in ways if number % 2 else ways[::-1]:
                    took = act(comfy, broker, seconds, jobs, args.compute)
                    if number:  # the first warms both up
                        found[way].append(took / jobs)
                    print(f"{name:>10} {way:>6} {took / jobs * 1000:8.1f} ms a job", file=sys.stderr)
            rows[name] = found
        worker.kill(15)
        steps = json.loads((lab / "steps.json").read_text())
    return report(args, rows, steps)


def direct(comfy: queuelab.Comfy, _: Broker, seconds: float, jobs: int, compute: bool) -> float:
    base = f"http://127.0.0.1:{comfy.port}"
    ids = [str(uuid.uuid4()) for _ in range(jobs)]
    begin = time.monotonic()
    for number, job in enumerate(ids):
        graph = queuelab.workflow(seconds, time.time_ns() + number, compute=compute)
        graph["2"]["inputs"]["filename_prefix"] = f"{job}/bench"
        queuelab.ask(f"{base}/prompt", {"prompt": graph, "prompt_id": job, "client_id": "direct"})
    while not queuelab.ask(f"{base}/history/{ids[-1]}"):
        time.sleep(0.005)
    took = time.monotonic() - begin
    queuelab.ask(f"{base}/history", {"clear": True})
    return took


def queued(_: queuelab.Comfy, broker: Broker, seconds: float, jobs: int, compute: bool) -> float:
    begin = time.monotonic()
    for number in range(jobs):
        graph = queuelab.workflow(seconds, time.time_ns() + number, compute=compute)
        last = broker.submit(Submission(workflow=graph, tenant="bench"))
    view = broker.wait(last.id, timeout=600)
    if view.state != "completed":
        raise SystemExit(f"{view}")
    return time.monotonic() - begin


def report(
    args: argparse.Namespace, rows: dict[str, dict[str, list[float]]], steps: dict[str, Any]
) -> tuple[str, float]:
    lines = []
    overheads = {}
    for name, found in rows.items():
        one, other = statistics.median(found["direct"]), statistics.median(found["queue"])
        overheads[name] = other / one - 1
        lines.append(
            (
                name,
                *(f"{value * 1000:.1f}" for value in (one, other, other - one)),
                f"{(other / one - 1) * 100:.1f} %",
                f"{min(found['queue']) * 1000:.1f} to {max(found['queue']) * 1000:.1f}",
            )
        )
    work = "sleeps" if not args.compute else "computes on one thread"
    text = "# What the queue costs a job\n\n" + machine.markdown()
    text += (
        f"- image: {args.image}; {args.rounds} blocks of each way in turns, after one that is not counted\n"
    )
    text += f"- one second: a node that {work}, and SaveImage; tiny: the same with 0 s\n\n"
    text += output.table(
        ("jobs", "direct, ms", "queue, ms", "more, ms", "overhead", "queue, range"), lines, right=(1, 2, 3, 4)
    )
    text += "\nWhere the agent's main thread is, a job (both kinds; `follow` is ComfyUI's work, `clean` runs beside it):\n\n"
    count = steps["take"]["jobs"]
    text += output.table(
        ("step", "ms a job", "calls a job"),
        [
            (name, f"{step['seconds'] / count * 1000:.1f}", f"{step['calls'] / count:.1f}")
            for name, step in steps.items()
        ],
        right=(1, 2),
    )
    return text, overheads["one second"]


def agent(file: Path) -> None:
    """The agent, with a clock at each of its steps."""
    steps: dict[str, dict[str, float]] = {}
    for name, (module, path) in _STEPS.items():
        owner_name, _, method = path.rpartition(".")
        owner: Any = importlib.import_module(module)
        owner = getattr(owner, owner_name) if owner_name else owner
        steps[name] = {"seconds": 0.0, "calls": 0, "jobs": 0}
        setattr(owner, method, _timed(getattr(owner, method), steps[name]))
    logging.basicConfig(level=logging.WARNING)
    code = Agent(Settings.from_environment()).run()
    file.write_text(json.dumps(steps))
    sys.exit(code)


def _timed(act: Any, step: dict[str, float]) -> Any:
    @functools.wraps(act)
    def timed(*given: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        try:
            answer = act(*given, **more)
            step["jobs"] += not isinstance(answer, str)
            return answer
        finally:
            step["seconds"] += time.perf_counter() - begin
            step["calls"] += 1

    return timed


if __name__ == "__main__":
    main()
