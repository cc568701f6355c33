"""The agent as a process of its own, which can be told to die or to stop at one exact step.

STEP="comfywork.lease:Ledger.finish|before|1|KILL": at the first call, before it happens. `after` is when it has
happened and its answer was not used yet. KILL is kill -9 of itself; STOP a pause, until somebody sends SIGCONT.
STAGE_FILE, when given, is written once the step is reached.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any


def arm(step: str) -> None:
    place, when, which, what = step.split("|")
    module_name, _, path = place.partition(":")
    owner: Any = importlib.import_module(module_name)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original, seen = getattr(owner, name), [0]

    def act() -> None:
        seen[0] += 1
        if seen[0] == int(which):
            if file := os.environ.get("STEP_FILE"):
                Path(file).write_text("here")
            os.kill(os.getpid(), getattr(signal, f"SIG{what}"))

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        answer = original(*args, **kwargs)
        if when == "after":
            act()
        return answer

    setattr(owner, name, wrapped)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d [%(levelname)s] %(message)s")
    logging.getLogger("comfywork").setLevel(logging.INFO)
    from comfywork import agent, execution
    from comfywork.errors import ComfyworkError
    from comfywork.settings import Settings

    for name, seconds in (
        ("_STUBBORN", os.environ.get("STUBBORN")),
        ("_STORAGE_PATIENCE", os.environ.get("PATIENCE")),
    ):
        if seconds:
            setattr(execution, name, float(seconds))
    if step := os.environ.get("STEP"):
        arm(step)
    try:
        sys.exit(agent.Agent(Settings.from_environment()).run())
    except ComfyworkError as error:
        print(f"error: {error}\n  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
