"""How long files are kept: what is too old, and what killed workers left behind, is taken away."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from comfywork import names, quantities
from comfywork.errors import ComfyworkError
from comfywork.link import text
from comfywork.storage import sweep

if TYPE_CHECKING:
    import threading

    from comfywork.storage import Storage, StorageSettings
    from comfywork.storage.base import Swept

EVERY = 3600.0
"""Seconds between two sweeps of all workers together."""
_LEFT = 3600.0  # seconds beyond the longest job after which what is staged is nobody's
_SOON = 60.0  # seconds: how often a worker looks whether it is its turn

log = logging.getLogger("comfywork")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a sweep took away, or would take: results and inputs by tenant, and what was left half done."""

    tenants: dict[str, Swept]
    staged: Swept

    @property
    def all(self) -> Swept:
        return sum(self.tenants.values(), start=self.staged)


class Keeper:
    def __init__(
        self, connection: redis.Redis, storage: Storage, settings: StorageSettings, job_timeout: float
    ) -> None:
        self._redis, self._storage, self._settings = connection, storage, settings
        self._left = job_timeout + _LEFT

    def run(self, worker: str, over: threading.Event) -> None:
        """Sweep once every hour, one worker at a time, until `over`."""
        while not over.wait(_SOON):
            try:
                if self._redis.set(names.SWEPT, worker, nx=True, ex=int(EVERY)):
                    self.sweep()
            except (ComfyworkError, redis.RedisError) as error:
                log.warning("files are not swept: %s", error)

    def sweep(self, *, dry_run: bool = False) -> Kept:
        """StorageError and redis.RedisError come through."""
        settings = self._settings
        limited = settings.retention is not None or any(
            value is not None for value in settings.retention_of.values()
        )
        tenants = sweep(self._storage, settings, self.holds, dry_run=dry_run).tenants if limited else {}
        staged = self._storage.sweep_staging(self._left, lambda _, job: self._lives(job), dry_run=dry_run)
        kept = Kept(tenants=tenants, staged=staged)
        if kept.all.objects and not dry_run:
            log.info("files that were too old: %d, %s", kept.all.objects, quantities.human(kept.all.size))
        return kept

    def holds(self, key: str) -> bool:
        """Whether a job that has not ended has this output, or wants this input."""
        parts = key.split("/")
        if len(parts) > 1 and parts[1] == "inputs":
            wanting = [text(job) for job in self._redis.smembers(names.wanting(key))]
            return any(self._lives(job) for job in wanting)
        return len(parts) > 1 and self._lives(parts[1])

    def _lives(self, job: str) -> bool:
        ended, tenant = self._redis.hmget(names.job(job), "ended", "tenant")
        return tenant is not None and ended is None
