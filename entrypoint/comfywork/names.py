"""The names of everything that lies in Redis, beside what RQ names itself.

`worker:<id>` carries no prefix: that is the name under which the documents look for a worker.
"""

from __future__ import annotations

import re
import uuid
from typing import Final, Literal, get_args

from comfywork.errors import ConfigError

Priority = Literal["high", "normal", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)

LEASES: Final = "comfy:leases"
"""Sorted set: job id → the second, by Redis' clock, at which its lease expires."""
FENCE: Final = "comfy:fence"
"""Counter: the last token given out."""
WAITING: Final = "comfy:waiting"
"""Set: names of queues that may hold jobs."""
SERVED: Final = "comfy:served"
"""Sorted set: tenant → GPU seconds that it was served, on a clock that all share."""
CLOCK: Final = "comfy:clock"
"""That clock: where the job that was taken last began."""
COSTS: Final = "comfy:costs"
"""Hash: tenant → GPU seconds that its next job may take."""
LAST: Final = "comfy:last"
"""Hash: queue → the second at which a job was taken from it."""
HELD: Final = "comfy:held"
"""Hash: worker → the job that it holds."""
IDLE: Final = "comfy:idle"
"""Sorted set: worker → the second at which it last found nothing to do."""
BELL: Final = "comfy:bell"
"""List that an idle worker waits on; a lost stroke costs one poll interval."""
EVENTS: Final = "comfy:events"
"""Channel: every change of a job, as JSON."""
COUNTERS: Final = "comfy:counters"
"""Hash: what metrics count."""
GENERATION: Final = "comfy:generation"
"""A random text that is new when Redis has lost its data."""
TENANTS: Final = "comfy:tenants"
"""Set: every tenant that ever submitted a job."""

SWEPT: Final = "comfy:swept"
"""The worker that swept the storage last, for an hour."""

WORKERS: Final = "worker:*"

_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_WORKER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62})")
_QUEUE = re.compile(r"comfy\.(?P<tenant>[a-z0-9-]+)\.(?P<priority>high|normal|low)")


def job(job_id: str) -> str:
    """Hash: what scheduling and committing need to know of a job."""
    return f"comfy:job:{job_id}"


def lease(job_id: str) -> str:
    """Hash {token, worker}: who holds the job. It has no expiry of its own; `LEASES` has."""
    return f"comfy:lease:{job_id}"


def worker(worker_id: str) -> str:
    return f"worker:{worker_id}"


def owner(worker_id: str) -> str:
    """The one process that may call itself by this id."""
    return f"comfy:owner:{worker_id}"


def orders(worker_id: str) -> str:
    """Channel: what a worker is told, as JSON."""
    return f"comfy:orders:{worker_id}"


def trail(job_id: str) -> str:
    """Stream: what ComfyUI said of a job (see trail.py)."""
    return f"comfy:trail:{job_id}"


def models(worker_id: str) -> str:
    """Text: a worker's model files, packed (see modellists.py)."""
    return f"comfy:models:{worker_id}"


def jobs_of(tenant: str) -> str:
    """Sorted set: a tenant's job ids by the second of their submission."""
    return f"comfy:jobs:{tenant}"


def wanting(key: str) -> str:
    """Set: the jobs that were submitted with this input."""
    return f"comfy:wanting:{key}"


def queue(tenant: str, priority: Priority) -> str:
    """An RQ queue's name."""
    return f"comfy.{tenant}.{priority}"


def of_queue(name: str) -> tuple[str, Priority] | None:
    """Tenant and priority of a queue's name; None when it is no queue of ours."""
    found = _QUEUE.fullmatch(name)
    return (found["tenant"], found["priority"]) if found else None  # type: ignore[return-value]


def check_tenant(tenant: str) -> str:
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"{tenant!r} is no tenant: lower case letters, digits and inner hyphens, 63 at most",
            hint="user001",
        )
    return tenant


def check_worker(worker_id: str) -> str:
    if not _WORKER.fullmatch(worker_id):
        raise ConfigError(
            f"{worker_id!r} is no worker's id: letters, digits, '_', '.' and '-', 63 at most",
            hint="WORKER_ID=worker-1",
        )
    return worker_id


def check_job(job_id: str) -> str:
    """The id in its canonical spelling; ComfyUI takes no other."""
    try:
        parsed = uuid.UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"{job_id!r} is no job id: a UUID, such as {uuid.UUID(int=0)}") from None
    if str(parsed) != job_id:
        raise ConfigError(f"{job_id!r} is not the canonical spelling of a UUID", hint=f"{parsed}")
    return job_id
