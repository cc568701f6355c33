"""The two requests that ComfyUI's own handlers cannot answer for a queue elsewhere."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .port import PortError, RefusedError

if TYPE_CHECKING:
    from .front import Front

_WAIT = 30.0  # seconds; big inputs take longer to be sent, and then an error comes as an event
_OK = 200


def middleware(front: Front) -> Any:
    @web.middleware
    async def handle(request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path.removeprefix("/api")
        if request.method == "POST" and path == "/interrupt":
            return await _interrupt(front, request)
        answer: web.StreamResponse = await handler(request)
        if request.method == "POST" and path == "/prompt" and answer.status == _OK:
            return await _queued(front, answer)
        return answer

    return handle


async def _interrupt(front: Front, request: web.Request) -> web.Response:
    """Of one prompt; without an id of every prompt of this front that runs, and nobody else's."""
    try:
        found = await request.json()
        wanted = found.get("prompt_id") if isinstance(found, dict) else None
    except ValueError:
        wanted = None
    running = front.queue.running()
    front.cancel([wanted] if wanted in running else [] if wanted else running, shown=True)
    return web.Response(status=_OK)


async def _queued(front: Front, answer: web.StreamResponse) -> web.StreamResponse:
    """ComfyUI has validated the prompt; the answer waits until the queue has it."""
    body = getattr(answer, "body", None)
    job = str(json.loads(body).get("prompt_id")) if isinstance(body, bytes) else ""
    waiting = front.answer(job)
    if waiting is None:
        return answer
    answered = asyncio.wrap_future(waiting)
    done, _ = await asyncio.wait({answered}, timeout=_WAIT)
    if not done:
        answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        front.answered(job)
        return answer
    try:
        answered.result()
    except PortError as error:
        kind = "queue_refused" if isinstance(error, RefusedError) else "queue_unreachable"
        said = {"type": kind, "message": f"Not queued: {error}", "details": error.hint, "extra_info": {}}
        return web.json_response({"error": said, "node_errors": {}}, status=400)
    return answer
