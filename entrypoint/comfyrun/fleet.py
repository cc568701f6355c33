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

from comfyrun import profile, redact, sharing
from comfyrun import settings as settings_module
from comfyrun.companion import Companion, Keeper
from comfyrun.errors import HardwareError, KernelError, MachineError
from comfyrun.logs import Log
from comfyrun.preflight import driver
from comfyrun.process import STOP_SIGNALS
from comfyrun.worker import timing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from comfyrun.layout import Layout
    from comfyrun.logs import Mode
    from comfyrun.preflight.gpus import Gpu
    from comfyrun.preflight.system import System
    from comfyrun.sharing import Share
    from comfyrun.worker import Worker

# A restart helps none of these: settings, a GPU that does not fit, a kernel; and a folder or port that is taken.
_HOPELESS = (2, HardwareError.exit_code, KernelError.exit_code, MachineError.exit_code)
_SLACK = 3.0  # seconds beyond what a pair takes for its own stop
_START = "import sys; sys.path.insert(0, {root!r}); from comfyrun.cli import main; sys.exit(main())"


def shares(
    worker: Worker, arguments: Sequence[str], environ: Mapping[str, str], layout: Layout, system: System
) -> tuple[Share, ...]:
    """What each ComfyUI of a worker gets of the GPUs; they are only asked for where that matters."""
    gpus: Sequence[Gpu] = ()
    matters = (worker.count > 1 or worker.limit) and "--cpu" not in arguments
    if matters and profile.read(layout.profile).cuda is not None:
        ways = (driver.Nvml(system=system, environ=environ), driver.Smi(system=system, environ=environ))
        answer, _ = driver.first(ways)
        gpus = answer.gpus if answer else ()
    pipe = environ.get("CUDA_MPS_PIPE_DIRECTORY", sharing.MPS_FOLDER)
    return sharing.plan(worker.count, worker.limit, gpus, environ, mps=system.exists(f"{pipe}/control"))


def start(
    parts: Sequence[Share],
    settings: Worker,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    known: Mapping[str, str],
    mode: Mode,
    say: Callable[[str], None],
) -> int:
    """Start a pair for each part, and keep them. `known`: the environment with what stands in comfyrun.env."""
    ours = {n: v for n, v in known.items() if n in ("COMFY_STOP_TIMEOUT", "COMFY_PORT")}
    given = settings_module.read(ours)
    stop = sum(timing(float(given.stop_timeout), settings)) + 1
    pairs = members(parts, environ, arguments, worker=settings.id, port=int(given.port), stop=stop)
    for pair, part in zip(pairs, parts, strict=True):
        say(f"{pair.what}: its GPU memory is bounded by {part.words}")
    return run(pairs, Log(mode, redact.of(known).values))


def members(
    parts: Sequence[Share],
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
        for number, share in enumerate(parts, 1)
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
    while [keeper for keeper in keepers if not keeper.wait(0.05)]:
        if time.monotonic() > end:
            log.say("not every worker has ended: killing the rest", "warning")
            break
        while not events.empty():
            if events.get() is not None:  # a second signal: they hurry too
                for keeper in keepers:
                    keeper.end()
    for keeper in keepers:
        keeper.force()
