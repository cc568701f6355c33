"""Several ComfyUIs in one container, each with an agent of its own: NUM_WORKERS.

Each pair is a `comfyrun worker` of its own, with its part of the GPU, a port and an id; this process keeps them
running. One that ends is started again, and the others go on: their jobs need not suffer for it.
"""

from __future__ import annotations

import queue
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun.companion import Companion, Keeper
from comfyrun.errors import HardwareError, KernelError, MachineError
from comfyrun.process import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfyrun.logs import Log
    from comfyrun.sharing import Share

# A restart helps none of these: settings, a GPU that does not fit, a kernel; and a folder or port that is taken.
_HOPELESS = (2, HardwareError.exit_code, KernelError.exit_code, MachineError.exit_code)
_SLACK = 3.0  # seconds beyond what a pair takes for its own stop
_START = "import sys; sys.path.insert(0, {root!r}); from comfyrun.cli import main; sys.exit(main())"


def members(
    shares: Sequence[Share],
    environ: Mapping[str, str],
    arguments: Sequence[str],
    *,
    worker: str,
    port: int,
    stop: float,
) -> tuple[Companion, ...]:
    """How each pair is started; `stop` is what one takes for its end, in seconds."""
    start = _START.format(root=str(Path(__file__).parents[1]))
    return tuple(
        Companion(
            argv=(sys.executable, "-IS", "-c", start, "worker", *arguments),
            environment={
                **environ,
                **share.environment,
                "NUM_WORKERS": "1",
                "WORKER_GPU_MEMORY_LIMIT": "",
                "WORKER_ID": f"{worker}-{number}",
                "COMFY_PORT": str(port + number - 1),
            },
            drain=stop,
            comfyui=0,
            name=f"{worker}-{number}",
            what=f"worker {worker}-{number}",
            goes_on="the others go on",
            hopeless=_HOPELESS,
        )
        for number, share in enumerate(shares, 1)
    )


def run(pairs: Sequence[Companion], log: Log) -> int:
    """Until a signal. The container's exit code: 0, or that of a pair that no restart helps."""
    events: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()
    before = {s: signal.signal(s, lambda n, _: events.put(signal.Signals(n))) for s in STOP_SIGNALS}
    try:
        keepers = [Keeper(pair, log, lambda: events.put(None)) for pair in pairs]
        for keeper in keepers:
            keeper.start()
        _end(keepers, max(pair.drain for pair in pairs) + _SLACK, events, log, events.get())
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    return next((keeper.code for keeper in keepers if keeper.code is not None), 0)


def _end(
    keepers: Sequence[Keeper],
    limit: float,
    events: queue.SimpleQueue[signal.Signals | None],
    log: Log,
    number: signal.Signals | None,
) -> None:
    why = number.name if number else "a worker that cannot run"
    log.say(f"{why}: ending {len(keepers)} workers, {limit:g} s at most")
    for keeper in keepers:
        keeper.end()
    end = time.monotonic() + limit
    while not all([keeper.wait(0.05) for keeper in keepers]):
        if time.monotonic() > end:
            log.say("not every worker has ended: killing the rest", "warning")
            break
        while not events.empty():
            if events.get() is not None:  # a second signal: they hurry too
                for keeper in keepers:
                    keeper.end()
    for keeper in keepers:
        keeper.force()
