"""The role of a worker: ComfyUI on loopback, with folders of its own, and the agent that gives it jobs.

Everything else of a start is what `serve` does.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun import options, scratch, sharing
from comfyrun.companion import Companion
from comfyrun.errors import ConfigError, MachineError
from comfyrun.preflight.finding import Finding, info
from comfyrun.redact import HIDDEN, is_secret
from comfyrun.role import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfyrun.launch import Launch
    from comfyrun.layout import Layout
    from comfyrun.sharing import Share

# What the queue's settings begin with: none of it is ComfyUI's business, whose nodes run anybody's code.
QUEUES = (
    *("REDIS_", "S3_", "QUEUE_", "WORKER_", "STORAGE", "RETENTION", "COMFYWORK_", "API_"),
    *("METRICS_", "TOKENS_", "DASHBOARD_"),
)

_COMFYUI = 3.0  # seconds of a stop that stay for ComfyUI, with no job in it
_LEAST_DRAIN = 1.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_HEARTBEAT = 60.0


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What comfyrun itself has to know of the queue's settings; the agent reads all of them."""

    id: str
    heartbeat: float = _HEARTBEAT
    """Seconds of silence after which the agent counts as dead."""
    drain: float | None = None
    """Seconds for a job that runs, after SIGTERM; None: what the stop of the container leaves."""
    count: int = 1
    """ComfyUIs in this container."""
    limit: str = ""
    """Of GPU memory, as somebody wrote it."""


def read(environ: Mapping[str, str], host: str) -> Worker:
    """Raises ConfigError with every mistake. Without an id the host's name is one: each container has its own."""
    mistakes = []
    name = environ.get("WORKER_ID", "") or re.sub(r"[^A-Za-z0-9_.-]", "-", host).strip("-._")[:63] or "worker"
    if not _ID.fullmatch(name):
        mistakes.append(
            f"WORKER_ID: {name!r} is no worker's id: letters, digits, '_', '.' and '-', 63 at most"
        )
    seconds: dict[str, float | None] = {}
    for variable in ("WORKER_HEARTBEAT_TIMEOUT", "WORKER_DRAIN_TIMEOUT"):
        try:
            seconds[variable] = _seconds(environ.get(variable, ""))
        except ValueError as error:
            mistakes.append(f"{variable}: {error}")
    count, limit = 1, environ.get("WORKER_GPU_MEMORY_LIMIT", "")
    try:
        count = sharing.count(environ.get("NUM_WORKERS", ""))
    except ValueError as error:
        mistakes.append(f"NUM_WORKERS: {error}")
    try:
        sharing.limit(limit, None)
    except ValueError as error:
        mistakes.append(f"WORKER_GPU_MEMORY_LIMIT: {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    heartbeat = seconds["WORKER_HEARTBEAT_TIMEOUT"]
    return Worker(
        id=name,
        heartbeat=_HEARTBEAT if heartbeat is None else heartbeat,
        drain=seconds["WORKER_DRAIN_TIMEOUT"],
        count=count,
        limit=limit,
    )


def _seconds(text: str) -> float | None:
    if not text:
        return None
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no duration, such as 90s, 12h or 7d")
    return float(found[1]) * _UNITS[found[2].lower()]


def refuse_without_work(layout: Layout, verb: str) -> None:
    if not layout.work_python.exists() or not layout.work.exists():
        raise MachineError(
            f"comfyrun {verb} needs {layout.work_python.parent.parent}, and this image has none: it was built before "
            "there were workers, or without them (`work` in images/comfyui.yaml); take a newer image"
        )


def role(worker: Worker) -> Role:
    return Role(name="worker", listen="127.0.0.1", worker=worker.id)


def timing(stop: float, worker: Worker) -> tuple[float, float]:
    """Of a stop: seconds for the job that runs, and then for ComfyUI."""
    drain = max(stop - _COMFYUI - 1, _LEAST_DRAIN) if worker.drain is None else worker.drain
    return drain, min(_COMFYUI, stop)


def companion(launch: Launch, worker: Worker, layout: Layout) -> Companion:
    """How the agent is started: with the settings of the container, and with where its ComfyUI is."""
    folder = scratch.place(launch.cache, worker.id)
    scheme, host = ("https" if launch.tls else "http"), launch.listen[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    drain, comfyui = timing(float(launch.settings.stop_timeout), worker)
    ours = {
        "WORKER_ID": worker.id,
        "WORKER_DRAIN_TIMEOUT": f"{drain:g}",
        "COMFYWORK_SERVER": f"{scheme}://{host}:{launch.port}",
        "COMFYWORK_STATE": f"{folder}/{scratch.STATE}",  # on the volume: with it a restarted worker keeps its name
        "COMFYWORK_INPUT": _folder(launch, "--input-directory", f"{folder}/input"),
        "COMFYWORK_OUTPUT": _folder(launch, "--output-directory", f"{folder}/output"),
    }
    environment = {**launch.environment, **ours}
    return Companion(
        argv=(*layout.work_command, "agent"),
        environment=environment,
        drain=drain,
        comfyui=comfyui,
    )


def _folder(launch: Launch, flag: str, standard: str) -> str:
    """Where ComfyUI really reads and writes: somebody may have named another place."""
    option = options.last(launch.options, flag)
    return posixpath.join(launch.workdir, option.values[0]) if option else standard


def without_the_queue(environment: Mapping[str, str]) -> dict[str, str]:
    """What ComfyUI gets of a worker's environment: no password of the queue and of its storage."""
    kept = {name: value for name, value in environment.items() if not name.startswith(QUEUES)}
    # /opt/nodes/queuefront: what nodes write into their files is the graph as it was submitted.
    return {**kept, "COMFY_QUEUE_WORKER": "1"}


def findings(shares: Sequence[Share]) -> tuple[Finding, ...]:
    """For `comfyrun check`: what bounds the GPU memory of each ComfyUI."""
    several = len(shares) > 1
    return tuple(
        info(
            "sharing",
            f"{f'worker {n} of {len(shares)}' if several else 'the worker'}: its GPU memory is bounded by {share.words}",
        )
        for n, share in enumerate(shares, 1)
    )


def told(worker: Worker, companion: Companion) -> dict[str, object]:
    """For `comfyrun health`."""
    return {
        "worker": {
            "id": worker.id,
            "state": companion.environment["COMFYWORK_STATE"],
            "timeout": worker.heartbeat,
        }
    }


def as_lines(companion: Companion) -> list[str]:
    """For `comfyrun worker --print`: how the agent is started."""
    ours = sorted(n for n in companion.environment if n.startswith(QUEUES))
    shown = (f"  {n}={shlex.quote(HIDDEN if is_secret(n) else companion.environment[n])}" for n in ours)
    return ["agent", f"  {shlex.join(companion.argv)}", *shown]
