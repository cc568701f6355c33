"""A job and a worker as Redis has them, as what is shown of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from rq.job import JobStatus

from comfywork.link import text
from comfywork.views import ENDED, Failure, JobView, Output, Progress, State, WorkerView

if TYPE_CHECKING:
    from collections.abc import Mapping

STATES: Final[Mapping[str, State]] = {
    JobStatus.QUEUED: "pending",
    JobStatus.DEFERRED: "pending",
    JobStatus.SCHEDULED: "pending",
    JobStatus.CREATED: "pending",
    JobStatus.STARTED: "processing",
    JobStatus.FINISHED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "cancelled",
    JobStatus.CANCELED: "cancelled",
}
"""RQ's status → ours."""


def job_view(job_id: str, ours: Mapping[bytes, bytes], theirs: Mapping[str, bytes | None]) -> JobView:
    known = {text(name): text(value) for name, value in ours.items()}
    state = STATES.get(text(theirs["status"]), "pending")
    outputs: tuple[Output, ...] = ()
    if state == "completed" and "sealed" in known:
        outputs = tuple(Output(**output) for output in json.loads(known["sealed"])["outputs"])
    return JobView(
        id=job_id,
        tenant=known.get("tenant", ""),
        priority=known.get("priority", "normal"),  # type: ignore[arg-type]
        state=state,
        submitted=float(known.get("since", 0)),
        started=float(known["begun"]) if "begun" in known else None,
        ended=float(known["ended"]) if "ended" in known else None,
        attempts=int(known.get("attempts", 0)),
        worker=known.get("worker", ""),
        progress=_progress(theirs["meta"], known, state),
        outputs=outputs,
        failure=Failure(**json.loads(known["failure"])) if "failure" in known else None,
        cancelling="cancel" in known and state not in ENDED,
        note=known.get("note", ""),
    )


def _progress(meta: bytes | None, known: Mapping[str, str], state: State) -> Progress:
    nodes = int(known.get("nodes", 0))
    if state == "completed":
        return Progress(done=nodes, nodes=nodes)
    try:
        found = json.loads(meta or b"{}").get("progress") or {}
        return Progress(**{"nodes": nodes, **found})
    except (ValueError, TypeError, AttributeError):
        return Progress(nodes=nodes)


def worker_view(worker_id: str, raw: Mapping[bytes, bytes]) -> WorkerView:
    known = {text(name): text(value) for name, value in raw.items()}
    return WorkerView(
        id=worker_id,
        state=known.get("state", ""),
        job=known.get("job", ""),
        gpu=known.get("gpu", ""),
        image=known.get("image", ""),
        target=known.get("target", ""),
        comfyui=known.get("comfyui", ""),
        host=known.get("host", ""),
        loaded=tuple(name for name in known.get("loaded", "").split("|") if name),
        models=int(known.get("models", 0)),
        seen=float(known.get("seen", 0)),
        since=float(known.get("since", 0)),
        done=int(known.get("done", 0)),
        failed=int(known.get("failed", 0)),
        memory_used=int(known.get("memory_used", 0)),
        memory_total=int(known.get("memory_total", 0)),
        fallbacks=int(known.get("fallbacks", 0)),
    )
