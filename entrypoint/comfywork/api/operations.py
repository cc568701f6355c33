"""/health, /ready, /metrics: for what keeps this server running."""

from __future__ import annotations

from fastapi import APIRouter, Response

from comfywork import metrics
from comfywork.api import models
from comfywork.api.front import AnyFront
from comfywork.api.jobs import refusals
from comfywork.api.problems import Json
from comfywork.errors import ComfyworkError

router = APIRouter(tags=["operation"])


@router.get("/health", response_model=models.Health)
async def health() -> Json:
    """This process answers."""
    return Json({"status": "ok"})


@router.get(
    "/ready",
    response_model=models.Ready,
    responses={503: {"model": models.Ready, "description": "One of them does not answer."}},
)
def ready(front: AnyFront) -> Json:
    """Queue and storage answer. Why not stands in the server's log, since anybody may ask this."""
    found = {"status": "ok", "queue": "ok", "storage": "ok"}
    for name, look in (("queue", front.broker.ping), ("storage", front.check_storage)):
        try:
            look()
        except ComfyworkError as error:
            front.say(name, str(error))
            found[name] = found["status"] = "unavailable"
        else:
            front.say(name, "")
    return Json(found, status_code=200 if found["status"] == "ok" else 503)


class _Metrics(Response):
    media_type = "text/plain"


@router.get(
    "/metrics",
    response_class=_Metrics,
    responses={
        **{status: entry for status, entry in refusals(403).items() if status != 503},  # noqa: PLR2004
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
def prometheus(front: AnyFront) -> Response:
    """For Prometheus, with METRICS_TOKEN as bearer token, or an admin's."""
    return Response(metrics.rendered(front.broker), headers={"Content-Type": metrics.CONTENT_TYPE})
