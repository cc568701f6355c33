"""/v1/me, workers, queues, events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from comfywork.api import models
from comfywork.api.events import ALL, Beat
from comfywork.api.front import AnyCaller
from comfywork.api.jobs import refusals
from comfywork.api.problems import Json
from comfywork.errors import ComfyworkError
from comfywork.views import ENDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from comfywork.api.front import Caller

router = APIRouter(prefix="/v1", tags=["queue"])

_LOOK = 1.0  # seconds between two looks at what runs: progress is no event
_SILENCE = 15.0
_WHOLE = (
    10.0  # seconds between two looks at everything: places in the queue are no events, and one may get lost
)
_MOST = 200


@router.get("/me", response_model=models.Me, responses=refusals())
def me(caller: AnyCaller) -> Json:
    """Whose token this is, and what it allows."""
    grant, limits = caller.grant, caller.broker.settings
    return Json(
        {
            "tenant": grant.tenant,
            "admin": grant.admin,
            "priority": grant.ceiling,
            "rate": limits.rate,
            "depth": limits.depth,
        }
    )


@router.get("/workers", response_model=models.Workers, responses=refusals())
def workers(caller: AnyCaller) -> Json:
    """Workers; what runs on them, and where, is for an admin."""
    return Json({"workers": [caller.worker(view) for view in caller.broker.workers()]})


@router.get("/queues", response_model=models.Queues, responses=refusals())
def queues(caller: AnyCaller) -> Json:
    """Queues in which jobs wait."""
    found = caller.broker.queues()
    own = [view.as_dict() for view in found if caller.scope in (None, view.tenant)]
    return Json({"queues": own, "waiting": sum(view.waiting for view in found)})


_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["hello", "job", "trouble"]},
        "data": {"type": "string", "description": "JSON; of `job`, a job."},
    },
    "required": ["event", "data"],
}


class _Stream(StreamingResponse):
    media_type = "text/event-stream"


class _For(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(
        3600.0, ge=0, le=86400, allow_inf_nan=False, description="When the stream ends; come back then."
    )


@router.get(
    "/events",
    response_class=_Stream,
    responses={
        **refusals(422, 429),
        200: {
            "description": "Server-sent events: `job` with a job as data, `hello` at the start.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
    },
)
async def events(request: Request, caller: AnyCaller, wanted: Annotated[_For, Query()]) -> _Stream:
    """Jobs as they change, while the connection lasts."""
    stream = _events(request, caller, wanted.seconds)
    first = await anext(stream)  # a limit is answered as such, and not in the middle of a stream

    async def all_of_it() -> AsyncIterator[str]:
        yield first
        async for event in stream:
            yield event

    return _Stream(all_of_it(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _events(request: Request, caller: Caller, seconds: float) -> AsyncIterator[str]:
    beat, end, whole = Beat(_SILENCE), Beat(seconds), Beat(_WHOLE)
    shown: dict[str, dict[str, Any]] = {}
    with caller.front.hub.listening(caller.scope, caller.grant.tenant) as listener:
        yield "event: hello\ndata: {}\n\n"
        changed = {ALL}
        while not (end.due() or await request.is_disconnected()):
            try:
                found = await run_in_threadpool(_changed, caller, changed, shown)
            except ComfyworkError as error:
                found = []
                yield f"event: trouble\ndata: {json.dumps({'detail': str(error)})}\n\n"
            for job in found:
                yield f"event: job\ndata: {json.dumps(job)}\n\n"
            if beat.due():
                yield ": still here\n\n"
            changed = await listener.heard(min(_LOOK, max(seconds, 0.01)))
            if whole.due():
                changed.add(ALL)


def _changed(caller: Caller, changed: set[str], shown: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs that look otherwise than they did; `shown` is what the listener knows: of an ended one only its state."""
    if ALL in changed:
        views = caller.broker.jobs(caller.scope, limit=_MOST)[::-1]
        there = {view.id for view in views}
        for job_id in [job_id for job_id in shown if job_id not in there]:
            if shown[job_id]["state"] in ENDED:
                del shown[job_id]
            else:
                views += caller.broker.views([job_id], caller.scope)
    else:
        running = {job_id for job_id, job in shown.items() if job["state"] == "processing"}
        views = caller.broker.views(sorted(changed | running), caller.scope)
    found = []
    for view in views:
        job = caller.job(view)
        known = {"state": view.state} if view.state in ENDED else job
        if shown.get(view.id) != known:
            shown[view.id] = known
            found.append(job)
    return found
