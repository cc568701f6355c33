"""/v1/jobs: submitted, looked at, changed."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from comfywork.api import models
from comfywork.api.front import AnyCaller
from comfywork.api.problems import Json
from comfywork.broker import Submission
from comfywork.views import State

JobId = Annotated[str, Path(pattern=models.UUID)]
MOST = 200  # jobs of a page

_said = {
    400: "The body is no JSON.",
    401: "No token, or nobody's.",
    403: "The token does not allow it.",
    404: "No such job, or a foreign one.",
    409: "The job's state, or another job of this id, stands against it.",
    413: "The body is too large.",
    415: "Another Content-Type is wanted.",
    422: "Something in the request is wrong; `detail` says what.",
    429: "A limit is reached; Retry-After says when to come back.",
    503: "Queue or storage do not answer now.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead, for its description."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 503, *statuses}):
        found[status] = {"description": _said[status], "content": content}
        if status in (429, 503):
            found[status]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
            }
    return found


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=201,
    response_model=models.Job,
    responses={
        **refusals(400, 403, 409, 413, 422, 429),
        201: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The job's."}}},
    },
)
def submit(caller: AnyCaller, body: models.Submit) -> Json:
    """Submit a workflow. The same submission with the same id again gives the same job."""
    tenant = caller.tenant(body.tenant)
    caller.check_priority(body.priority)
    view = caller.broker.submit(
        Submission(
            workflow=body.workflow,
            tenant=tenant,
            priority=body.priority,
            id=body.id or str(uuid.uuid4()),
            inputs=body.inputs,
            timeout=body.timeout,
            extra=body.extra,
        )
    )
    return Json(caller.job(view), status_code=201, headers={"Location": f"/v1/jobs/{view.id}"})


class _Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenant: models.Tenant | None = Field(None, description="For an admin's token: whose; all unless given.")
    state: list[State] = Field(default_factory=list, description="Only these.")
    limit: int = Field(50, ge=1, le=MOST)
    before: float | None = Field(
        None, ge=0, le=1e12, allow_inf_nan=False, description="`next` of the page before."
    )


@router.get("", response_model=models.Jobs, responses=refusals(403, 422))
def jobs(caller: AnyCaller, wanted: Annotated[_Filter, Query()]) -> Json:
    """A page of jobs, the latest first."""
    tenant = caller.scope if wanted.tenant is None else caller.tenant(wanted.tenant)
    found = caller.broker.jobs(tenant, wanted.state or None, wanted.limit, wanted.before)
    after = found[-1].submitted if len(found) == wanted.limit else None
    return Json({"jobs": [caller.job(view) for view in found], "next": after})


@router.get("/{job_id}", response_model=models.Job, responses=refusals(404, 422))
def status(caller: AnyCaller, job_id: JobId) -> Json:
    """A job."""
    return Json(caller.job(caller.broker.status(job_id, caller.scope)))


@router.post("/{job_id}/cancel", response_model=models.Job, responses=refusals(404, 422))
def cancel(caller: AnyCaller, job_id: JobId) -> Json:
    """Cancel a job: at once while it waits, soon while it runs. One that has ended stays as it is."""
    return Json(caller.job(caller.broker.cancel(job_id, caller.scope)))


@router.put("/{job_id}/priority", response_model=models.Job, responses=refusals(400, 403, 404, 409, 413, 422))
def reprioritise(caller: AnyCaller, job_id: JobId, body: models.NewPriority) -> Json:
    """Move a waiting job to another priority, behind what waits there."""
    caller.broker.status(job_id, caller.scope)
    caller.check_priority(body.priority)
    return Json(caller.job(caller.broker.reprioritise(job_id, body.priority, caller.scope)))


@router.post(
    "/{job_id}/retry",
    status_code=201,
    response_model=models.Job,
    responses={
        **refusals(403, 404, 409, 422, 429),
        201: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The new job's."}}},
    },
)
def retry(caller: AnyCaller, job_id: JobId) -> Json:
    """Run a job that failed or was cancelled once more, under a new id."""
    caller.check_priority(caller.broker.status(job_id, caller.scope).priority)
    view = caller.broker.retry(job_id, caller.scope)
    return Json(caller.job(view), status_code=201, headers={"Location": f"/v1/jobs/{view.id}"})
