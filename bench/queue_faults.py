"""A thousand real generations of twenty tenants, while workers, Redis and the storage fail: jobs in, results out.

    python bench/queue_faults.py --keep
    python bench/queue_faults.py --image comfyui:cpu-work --inside --keep

Twice: without faults, then with them. Three ComfyUI containers, each with an agent (on this machine, or, with
--inside, in the container as `comfyrun worker`), one Redis with an append-only file, one volume. All random choices are
the seed's: agents are killed with -9 and started again after a second, now and then the whole container with ComfyUI;
once Redis is killed with -9 and started again, once the volume is taken away. Each picture is then read from the
storage: its hash has to be the manifest's, and its colour the one that was asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import output
import queuelab
import redis

from comfywork import names
from comfywork.broker import Broker, Submission
from comfywork.errors import QueueError
from comfywork.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfywork.views import JobView

_WORKERS, _TENANTS = 3, 20
_REDIS_AWAY, _STORAGE_AWAY, _BACK = 3.0, 10.0, 1.0


@dataclass
class Fault:
    kind: str
    at: float
    """Seconds since 1970."""
    job: str = ""
    """What the worker held."""
    away: float = 0.0
    """Seconds until what was killed was started again."""


@dataclass
class Worker:
    id: str
    comfy: queuelab.Comfy
    agent: queuelab.Agent | None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        if self.agent:
            self.agent.start()

    def kill(self) -> None:
        """The agent alone, with -9. In a container comfyrun starts it again."""
        if self.agent:
            self.agent.kill()
            return
        for line in queuelab.docker("top", self.comfy.name, "-eo", "pid,args").splitlines()[1:]:
            pid, _, command = line.strip().partition(" ")
            if "comfywork agent" in command:
                subprocess.run(["kill", "-9", pid], check=False)

    def kill_all(self) -> None:
        self.comfy.kill()
        if self.agent:
            self.agent.kill()

    def supervise(self) -> None:
        """What comfyrun does for an agent that has ended: start it again."""
        if self.agent and self.lock.acquire(blocking=False):
            try:
                if self.agent.process and self.agent.process.poll() is not None:
                    time.sleep(_BACK)
                    self.agent.start()
            finally:
                self.lock.release()

    def back(self) -> None:
        self.comfy.again()
        self.start()

    def remove(self) -> None:
        if self.agent:
            self.agent.kill()
        self.comfy.remove()


@dataclass
class Lab:
    folder: Path
    args: argparse.Namespace
    server: queuelab.Redis = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.server = queuelab.Redis(self.folder / "redis").start()
        more = {"WORKER_HEARTBEAT_TIMEOUT": f"{self.args.heartbeat:g}", "QUEUE_DEPTH_PER_TENANT": "100000"}
        for number in range(_WORKERS):
            comfy = queuelab.Comfy(self.args.image, self.folder / f"comfy{number}")
            name = f"worker-{number + 1}"
            self.environ = queuelab.environ(self.folder, self.server, comfy.port, name, **more)
            if self.args.inside:
                (self.folder / "outputs").chmod(0o777)
                (self.folder / "inputs").chmod(0o777)
                comfy.start_worker(self.environ, self.folder)
                self.workers.append(Worker(name, comfy, None))
            else:
                agent = queuelab.Agent(name, self.environ, self.folder / f"{name}.log")
                self.workers.append(Worker(name, comfy.start(), agent))
        for worker in self.workers:
            queuelab.until(worker.comfy.ready, 300, "ComfyUI takes prompts")
            worker.start()
        broker = Broker.of_environment(self.environ)
        queuelab.until(lambda: len(broker.workers()) == _WORKERS, 120, "all workers have said that they live")

    def stop(self) -> None:
        for worker in self.workers:
            worker.remove()
        self.server.kill()

    # --- faults ----------------------------------------------------------------------------------

    def note(self, kind: str, worker: Worker | None = None) -> Fault:
        held = self.server.client.hget(names.HELD, worker.id) if worker else None
        self.faults.append(Fault(kind, time.time(), held.decode() if held else ""))
        return self.faults[-1]

    def torment(self) -> None:
        """Until told to stop: an agent each few seconds, every fourth time all of the worker."""
        dice, number = random.Random(self.args.seed), 0
        while not self.over.wait(dice.uniform(3, 9)):
            worker, number = dice.choice(self.workers), number + 1
            with worker.lock:
                try:
                    if number % 4:
                        fault = self.note("agent killed", worker)
                        worker.kill()
                        time.sleep(_BACK)
                        worker.start()
                    else:
                        fault = self.note("container killed", worker)
                        worker.kill_all()
                        time.sleep(_BACK)
                        worker.back()
                    fault.away = time.time() - fault.at
                except redis.RedisError:
                    continue  # Redis is away itself

    def hurt(self, done: int, total: int) -> None:
        """Redis at two fifths of the jobs, the volume at seven tenths; each once."""
        kinds = {fault.kind for fault in self.faults}
        if done >= 0.4 * total and "Redis killed" not in kinds:
            fault = self.note("Redis killed")
            self.server.kill()
            time.sleep(_REDIS_AWAY)
            self.server.start()
            fault.away = time.time() - fault.at
        if done >= 0.7 * total and "volume away" not in kinds:
            fault = self.note("volume away")
            outputs = self.folder / "outputs"
            outputs.rename(self.folder / "away")
            time.sleep(_STORAGE_AWAY)
            (self.folder / "away").rename(outputs)
            fault.away = time.time() - fault.at


def run(args: argparse.Namespace, *, faults: bool) -> tuple[Lab, list[JobView], float, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), args)
        try:
            lab.start()
            return lab, *worked(lab, args, faults=faults)
        finally:
            lab.over.set()
            lab.stop()


def worked(
    lab: Lab, args: argparse.Namespace, *, faults: bool
) -> tuple[list[JobView], float, dict[str, int]]:
    broker = Broker.of_environment(lab.environ)
    colours = {str(uuid.UUID(int=args.seed << 64 | number)): number * 4099 for number in range(args.jobs)}
    begin = time.time()
    submitting = threading.Thread(target=submit, args=(lab, colours))
    submitting.start()
    tormenting = threading.Thread(target=lab.torment)
    if faults:
        tormenting.start()
    done, told = 0, 0.0
    while done < args.jobs:
        time.sleep(0.2)
        for worker in lab.workers:
            worker.supervise()
        try:
            counted = lab.server.client.hgetall(names.COUNTERS)
        except redis.RedisError:
            continue
        done = sum(int(counted.get(state, 0)) for state in (b"completed", b"failed", b"cancelled"))
        if faults:
            lab.hurt(done, args.jobs)
        if time.time() - told > 10:
            told = time.time()
            print(f"{told - begin:5.0f} s: {done} of {args.jobs}; {len(lab.faults)} faults", file=sys.stderr)
        if time.time() - begin > args.limit:
            raise SystemExit(
                f"{done} of {args.jobs} after {args.limit:g} s: {broker.queues()}, {broker.workers()}"
            )
    submitting.join()
    lab.over.set()
    if faults:
        tormenting.join()
    views = [broker.status(job) for job in colours]
    return views, max(view.ended or 0 for view in views) - begin, checked(lab, views, colours)


def submit(lab: Lab, colours: dict[str, int]) -> None:
    """Twenty tenants in turns. What Redis did not answer is submitted again, under the same id."""
    broker = Broker.of_environment(lab.environ)
    for number, (job, colour) in enumerate(colours.items()):
        one = Submission(id=job, tenant=f"user{number % _TENANTS:03}", workflow=queuelab.tiny(colour))
        while True:
            try:
                broker.submit(one)
                break
            except QueueError:
                time.sleep(0.5)


def checked(lab: Lab, views: Sequence[JobView], colours: dict[str, int]) -> dict[str, int]:
    """What came out, picture by picture."""
    storage = open_storage(lab.environ)
    found: Counter[str] = Counter()
    keys: set[str] = set()
    for view in views:
        found[view.state] += 1
        for one in view.outputs:
            keys.add(one.key)
            with storage.open(one.key) as opened:
                content = opened.read()
            right = hashlib.sha256(content).hexdigest() == one.sha256
            # ComfyUI writes the workflow into the picture.
            right &= f'"color": {colours[view.id]}'.encode() in content
            found["right" if right else "wrong"] += 1
    found["objects"] = len({entry.key for entry in storage.keys("")})
    found["strays"] = found["objects"] - len(keys)
    counted = {
        name.decode(): int(float(value)) for name, value in lab.server.client.hgetall(names.COUNTERS).items()
    }
    found["submitted"], found["ended"] = counted["submitted"], counted.get("completed", 0)
    return dict(found)


def lost(fault: Fault, views: Sequence[JobView], usual: float) -> float:
    """Seconds: until the job that was hit ended, or anybody's next one did, beyond what that usually takes."""
    if fault.job:
        ends = [view.ended for view in views if view.id == fault.job and view.ended]
    else:
        ends = sorted(view.ended for view in views if view.ended and view.ended > fault.at + fault.away)
    return max(0.0, ends[0] - fault.at - usual) if ends else 0.0


def report(args: argparse.Namespace, base: tuple, hurt: tuple) -> tuple[str, bool]:  # type: ignore[type-arg]
    _, base_views, base_seconds, base_found = base
    lab, views, seconds, found = hurt
    took = [view.ended - view.started for view in base_views if view.ended and view.started]
    usual = statistics.median(took)
    names_ = ("agent killed", "container killed", "Redis killed", "volume away")
    rows = []
    for kind in names_:
        hits = [fault for fault in lab.faults if fault.kind == kind]
        busy = [fault for fault in hits if fault.job or kind in names_[2:]]
        times = [lost(fault, views, usual) for fault in busy]
        shown = (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("–", "–")
        rows.append((kind, str(len(hits)), str(len(busy)), *shown))
    for view in views:
        if view.state != "completed":
            print(
                f"{view.id}: {view.state}, {view.attempts} attempts, {view.failure}, {view.note}",
                file=sys.stderr,
            )
    attempts = Counter(view.attempts for view in views)
    good = (
        found.get("right") == found["ended"] == found["submitted"] == found.get("completed") == args.jobs
        and not found.get("wrong")
        and not found["strays"]
    )
    text = "# A thousand jobs, and what breaks meanwhile\n\n" + machine.markdown()
    text += f"- {_WORKERS} workers ({args.image}, agents {'inside' if args.inside else 'beside'}), {_TENANTS} tenants, "
    text += f"WORKER_HEARTBEAT_TIMEOUT={args.heartbeat:g}, seed {args.seed}\n- job: EmptyImage, ImageInvert, SaveImage\n\n"
    columns = (
        "run",
        "jobs in",
        "completed",
        "pictures right",
        "failed",
        "lost",
        "double",
        "strays",
        "s",
        "jobs/s",
    )
    text += output.table(
        columns,
        [
            (
                name,
                str(one["submitted"]),
                str(one["ended"]),
                str(one.get("right", 0)),
                str(one.get("failed", 0)),
                str(args.jobs - sum(one.get(state, 0) for state in ("completed", "failed", "cancelled"))),
                str(one["ended"] - one.get("completed", 0)),
                str(one["strays"]),
                f"{took_:.0f}",
                f"{args.jobs / took_:.2f}",
            )
            for name, one, took_ in (
                ("without faults", base_found, base_seconds),
                ("with faults", found, seconds),
            )
        ],
        right=range(1, 10),
    )
    text += (
        f"\nSeconds lost to a fault: from it until the job that it hit had ended (until the next job of anybody had, "
        f"for Redis and the volume), less the {usual:.2f} s that a job takes.\n\n"
    )
    text += output.table(
        ("fault", "times", "that hit a job", "s lost, median", "s lost, most"), rows, right=(1, 2, 3, 4)
    )
    text += f"\nRedis was away for {_REDIS_AWAY:g} s, the volume for {_STORAGE_AWAY:g} s; an agent was started again "
    text += f"after {_BACK:g} s. Times that a job was begun: "
    text += ", ".join(f"{count} × {number}" for number, count in sorted(attempts.items())) + ".\n"
    return text, good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="comfyui:cpu")
    parser.add_argument("--inside", action="store_true", help="the image runs `comfyrun worker`")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--heartbeat", type=float, default=20.0)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one of the two runs")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    base = run(args, faults=False)
    text, good = report(args, base, run(args, faults=True))
    print(text)
    if args.keep:
        (output.RESULTS / "queue-faults.md").write_text(text)
    sys.exit(not good)


if __name__ == "__main__":
    main()
