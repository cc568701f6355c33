"""Changes of jobs to whoever listens: one subscription to Redis, any number of listeners."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import redis

from comfywork import names
from comfywork.errors import LimitError
from comfywork.link import text

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT = 10_000  # tenants of jobs remembered
_WAITING = 1000  # events that a listener may be behind; then it looks at everything once
_PER_TENANT = 20
_PAUSE = 1.0
ALL = ""
"""Instead of a job's id: anything may have changed."""


class Listener:
    def __init__(self, tenant: str | None, loop: asyncio.AbstractEventLoop) -> None:
        self.tenant = tenant
        self._loop = loop
        self._queue: asyncio.Queue[str] = asyncio.Queue(_WAITING)

    def tell(self, job_id: str) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._put, job_id)

    def _put(self, job_id: str) -> None:
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            job_id = ALL
        self._queue.put_nowait(job_id)

    async def heard(self, seconds: float) -> set[str]:
        """Jobs that changed, as soon as there are any; empty when so much time is over."""
        try:
            found = {await asyncio.wait_for(self._queue.get(), seconds)}
        except TimeoutError:
            return set()
        while not self._queue.empty():
            found.add(self._queue.get_nowait())
        return found


class Hub:
    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()
        self._tenants: OrderedDict[str, str] = OrderedDict()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(3)

    @contextlib.contextmanager
    def listening(self, tenant: str | None, who: str) -> Iterator[Listener]:
        """LimitError when this tenant has too many."""
        listener = Listener(tenant, asyncio.get_running_loop())
        with self._lock:
            if sum(1 for other in self._listeners if other.tenant == tenant) >= _PER_TENANT:
                raise LimitError(f"{who} listens {_PER_TENANT} times already", after=30)
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(names.EVENTS)
                    self._tell(ALL, None)  # what was missed meanwhile
                    while not self._stop.is_set():
                        message = channel.get_message(timeout=1.0)
                        if message and message["type"] == "message":
                            self._heard(message["data"])
            except redis.RedisError:
                self._stop.wait(_PAUSE)

    def _heard(self, data: bytes) -> None:
        try:
            job_id = str(json.loads(data)["job"])
        except (ValueError, KeyError, TypeError):
            return
        self._tell(job_id, self._tenant(job_id))

    def _tenant(self, job_id: str) -> str:
        known = self._tenants.get(job_id)
        if known is None:
            known = text(self._redis.hget(names.job(job_id), "tenant"))
            self._tenants[job_id] = known
            if len(self._tenants) > _KEPT:
                self._tenants.popitem(last=False)
        return known

    def _tell(self, job_id: str, tenant: str | None) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            if tenant is None or listener.tenant in (None, tenant):
                listener.tell(job_id)


class Beat:
    """When a stream says something although nothing happens, so that proxies keep it open."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True
