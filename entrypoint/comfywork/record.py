"""What a worker says of itself: to Redis, to RQ's dashboard, and to `comfyrun health`."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from comfywork.jobs import Job, Queue, queue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfywork.settings import Settings

PROFILE = Path("/etc/comfyrun/profile.json")
_FRESH = 60  # seconds for which the dashboard shows a worker that says nothing


class Record:
    """The facts, and the places where they are told."""

    def __init__(self, connection: redis.Redis, settings: Settings, profile: Path = PROFILE) -> None:
        self._settings = settings
        self.facts: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "state": "starting",
            "job": "",
            "loaded": "",
            "done": 0,
            "failed": 0,
            **_image(profile),
        }
        self._connection = connection
        self._rq: SimpleWorker | None = None

    def born(self) -> None:
        """Shown by RQ's dashboard from now on. The name is this worker's own (see Ledger.own)."""
        # RQ asks Redis things as soon as there is a worker.
        worker = SimpleWorker(
            [queue("comfy.default.normal", self._connection)],
            name=self._settings.worker_id,
            connection=self._connection,
            job_class=Job,
            queue_class=Queue,
            serializer=JSONSerializer,
            worker_ttl=int(self._settings.heartbeat_timeout) + _FRESH,
        )
        worker.connection.delete(worker.key)
        worker.register_birth()
        self._rq = worker

    def died(self) -> None:
        if self._rq is not None:
            with suppress(redis.RedisError):
                self._rq.register_death()

    def alive(self, system: Mapping[str, Any]) -> None:
        """One heartbeat for the dashboard; `system` is ComfyUI's /system_stats."""
        self.facts.update(_gpu(system))
        if self._rq is None:
            return
        self._rq.heartbeat()
        self._rq.set_state({"busy": "busy", "idle": "idle"}.get(self.facts["state"], "started"))

    def write(self) -> None:
        """For `comfyrun health`, which looks at the file's age."""
        file = self._settings.state_file
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(".new")
            new.write_text(
                json.dumps({"state": self.facts["state"], "job": self.facts["job"], "pid": os.getpid()})
            )
            new.replace(file)


def _image(profile: Path) -> dict[str, str]:
    try:
        found = json.loads(profile.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"image": os.environ.get("COMFYWORK_IMAGE", "")}
    return {
        "image": os.environ.get("COMFYWORK_IMAGE", "") or f"comfyui:{found.get('target', '')}",
        "target": str(found.get("target", "")),
    }


def _gpu(system: Mapping[str, Any]) -> dict[str, Any]:
    devices = system.get("devices") or []
    if not devices:
        return {}
    first = devices[0]
    total, free = int(first.get("vram_total") or 0), int(first.get("vram_free") or 0)
    return {
        "gpu": str(first.get("name", "")),
        "memory_total": total,
        "memory_used": max(0, total - free),
        "comfyui": str((system.get("system") or {}).get("comfyui_version", "")),
    }
