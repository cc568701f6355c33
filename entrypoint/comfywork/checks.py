"""Whether jobs will run: the queue, the storage, the workers and their models, each with what to do where it fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from comfywork.broker import Broker
from comfywork.errors import ComfyworkError, QueueError, RefusedError
from comfywork.link import Step, connect, diagnose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfywork.settings import Settings

_REFUSALS = ("password", "rights")


def check(settings: Settings, environ: Mapping[str, str] | None = None) -> list[Step]:
    """Every step; what cannot be looked at is skipped."""
    steps = diagnose(settings.redis)
    if any(step.status == "failed" for step in steps):
        return [*steps, *(_skipped(name) for name in ("storage", "workers", "models", "waiting"))]
    broker = Broker(connect(settings.redis), settings)
    try:
        steps.append(_step("storage", lambda: _storage(broker, environ)))
        steps.append(_step("workers", lambda: _workers(broker)))
        steps.append(_step("models", lambda: _models(broker)))
        steps.append(_step("waiting", lambda: _waiting(broker)))
    finally:
        broker.connection.close()
    return steps


def exit_code(steps: list[Step]) -> int:
    """0; 77 when the queue refuses the password or the user, 69 for everything else."""
    failed = [step for step in steps if step.status == "failed"]
    if not failed:
        return 0
    return RefusedError.exit_code if failed[0].name in _REFUSALS else QueueError.exit_code


def _step(name: str, look: Callable[[], str]) -> Step:
    begin = time.monotonic()
    try:
        message = look()
    except ComfyworkError as error:
        passed = time.monotonic() - begin
        return Step(
            name=name,
            status="failed",
            message="\n".join(error.messages),
            hint=error.hint,
            seconds=passed,
        )
    return Step(name=name, status="ok", message=message, seconds=time.monotonic() - begin)


def _skipped(name: str) -> Step:
    return Step(name=name, status="skipped", message="not looked at")


def _storage(broker: Broker, environ: Mapping[str, str] | None) -> str:
    from comfywork.storage import StorageSettings, open_storage  # noqa: PLC0415 - boto3 is slow to import

    storage = open_storage(StorageSettings.from_environment(environ), broker.connection)
    storage.check()
    return f"{storage.name}: written, read and deleted a small file"


def _workers(broker: Broker) -> str:
    found = broker.workers()
    limit = broker.settings.heartbeat_timeout
    seconds, _ = broker.connection.time()
    alive = [worker for worker in found if seconds - worker.seen < limit]
    if not alive:
        silent = (
            f"; {', '.join(worker.id for worker in found)} silent for {limit:g} s or longer" if found else ""
        )
        raise QueueError(
            f"no worker is there{silent}",
            hint="on a GPU machine: comfyrun worker, with REDIS_HOST at this queue; its log says why it stops",
        )
    shown = [f"{worker.id} ({worker.state}{', ' + worker.gpu if worker.gpu else ''})" for worker in alive]
    return f"{len(alive)}: {', '.join(shown)}"


def _models(broker: Broker) -> str:
    counts = {worker.id: worker.models for worker in broker.workers()}
    empty = sorted(name for name, count in counts.items() if not count)
    if counts and len(empty) == len(counts):
        raise QueueError(
            "no worker has a model file",
            hint="on the GPU machine: comfyrun models pull LIST; MODELS_PATH is where they lie",
        )
    return ", ".join(f"{name} has {count}" for name, count in sorted(counts.items()))


def _waiting(broker: Broker) -> str:
    queues = broker.queues()
    if not queues:
        return "no job waits"
    oldest = max(queue.oldest or 0.0 for queue in queues)
    count = sum(queue.waiting for queue in queues)
    return (
        f"{count} job{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}, the oldest {oldest:.0f} s"
    )
