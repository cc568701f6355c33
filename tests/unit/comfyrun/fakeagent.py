"""Stands in for the agent of a worker: what comfyrun has to do with it, and no queue.

    python fakeagent.py FOLDER [WORD ...]

It says each start and each signal in FOLDER/agent.log, and its heartbeat in FOLDER/agent.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER, WORDS = Path(sys.argv[1]), sys.argv[2:]


def note(text: str) -> None:
    with (FOLDER / "agent.log").open("a") as file:
        file.write(f"{time.time():.3f} {os.getpid()} {text}\n")


def main() -> None:
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    note("start")
    print(f"[INFO] agent {os.getpid()} takes jobs", flush=True)
    print('{"level": "warning", "message": "as JSON"}', file=sys.stderr, flush=True)
    if "env" in WORDS:
        (FOLDER / "agent.env").write_text(json.dumps(dict(os.environ)))
    for word in WORDS:
        if word.startswith("exit-"):
            sys.exit(int(word.removeprefix("exit-")))
    busy = float(next((w.removeprefix("busy-") for w in WORDS if w.startswith("busy-")), 0))
    parent = os.getppid()
    while os.getppid() == parent:
        new = FOLDER / "agent.new"
        new.write_text(json.dumps({"state": "busy" if busy else "idle", "job": ""}))
        new.replace(FOLDER / "agent.json")
        if signals and "deaf" not in WORDS:
            note("drains")
            end = time.monotonic() + busy
            while time.monotonic() < end and len(signals) < 2:
                time.sleep(0.02)
            note("ended" if len(signals) < 2 else "hurried")
            return
        time.sleep(0.02)


main()
