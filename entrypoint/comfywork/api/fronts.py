"""What ComfyUI's own frontend needs of the queue: the workers' models, and what their ComfyUIs say of a job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from comfywork.api import models
from comfywork.api.front import AnyCaller
from comfywork.api.jobs import JobId, refusals
from comfywork.api.problems import Json

router = APIRouter(prefix="/v1", tags=["frontends"])


class Models(BaseModel):
    folders: dict[str, dict[str, int]] = Field(
        description="Folder, as ComfyUI calls it → file → how many of the workers have it."
    )
    workers: int = Field(description="That have said what they have.")


class Entry(BaseModel):
    t: int = Field(description="The attempt's token; greater in a later one.")
    k: str = Field(
        description="The event's kind, as ComfyUI calls it; `history` is its own entry of the job."
    )
    d: dict[str, Any] = Field(description="The event's data, without the job's id.")


class Trail(BaseModel):
    job: models.Job
    entries: list[Entry] = Field(
        description="At most 500, in their order. `progress_state` has what changed."
    )
    next: str = Field(description="`after` of the next call.")


class _After(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: str = Field("0-0", pattern=r"^[0-9]{1,15}-[0-9]{1,9}$", description="`next` of the last call.")


@router.get("/models", response_model=Models, responses=refusals())
def workers_models(caller: AnyCaller) -> Json:
    """The model files that workers offer, as of a minute ago."""
    folders, count = caller.broker.models()
    return Json({"folders": folders, "workers": count})


@router.get("/jobs/{job_id}/trail", response_model=Trail, responses=refusals(404, 422))
def trail(caller: AnyCaller, job_id: JobId, wanted: Annotated[_After, Query()]) -> Json:
    """A job, and what its worker's ComfyUI said of it. For jobs with `extra: {"comfywork": {"trail": true}}`."""
    # The job is looked at first: when it has ended, all of its trail was written before.
    view = caller.broker.status(job_id, caller.scope)
    entries, after = caller.broker.trail(job_id, wanted.after)
    return Json({"job": caller.job(view), "entries": entries, "next": after})
