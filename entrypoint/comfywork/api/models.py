"""What the API takes and gives, as its OpenAPI description says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from comfywork.names import Priority
from comfywork.views import FailureKind, State

UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
TENANT = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
FILE = r"^[a-z0-9][a-z0-9-]{0,79}_[0-9]{1,6}\.[a-z0-9]{1,16}$"
INPUT_KEY = r"^[a-z0-9-]{1,63}/inputs/[0-9a-f]{16}-[a-z0-9][a-z0-9._-]{0,99}$"

Id = Annotated[str, Field(pattern=UUID, examples=["0b1e9f0e-6d0f-4a59-9a30-0a5ad7ac7a11"])]
Tenant = Annotated[str, Field(pattern=TENANT, examples=["user001"])]

_WORKFLOW: JsonDict = {
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["class_type", "inputs"],
        "properties": {"class_type": {"type": "string"}, "inputs": {"type": "object"}},
    },
    "examples": [
        {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
            },
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "made"}},
        }
    ],
}


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Submit(_Given):
    workflow: dict[str, Any] = Field(
        description="In ComfyUI's API format (Workflow → Export (API)).", json_schema_extra=_WORKFLOW
    )
    tenant: Tenant | None = Field(None, description="For an admin's token: for whom. Else the token's own.")
    priority: Priority = "normal"
    id: Id | None = Field(None, description="The job's, a UUID; the same submission again is the same job.")
    inputs: dict[str, Annotated[str, Field(pattern=INPUT_KEY)]] = Field(
        default_factory=dict,
        description="A file's name as it stands in the workflow → its key, from POST /v1/inputs.",
    )
    timeout: float | None = Field(None, ge=1, allow_inf_nan=False, description="Seconds that it may run.")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="ComfyUI's extra_data, such as what it writes into a PNG."
    )


class NewPriority(_Given):
    priority: Priority


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = Field(None, description="The next step.")


class Progress(BaseModel):
    value: int
    maximum: int
    node: str
    done: int = Field(description="Nodes that have run.")
    nodes: int
    fraction: float = Field(ge=0, le=1)


class Output(BaseModel):
    key: str = Field(description="Its place in the storage.")
    file: str = Field(description="The last part of its key.")
    url: str = Field(description="Where this API gives it.")
    node: str
    name: str = Field(description="As ComfyUI called it.")
    media_type: str
    size: int = Field(description="Bytes.")
    sha256: str


class Failure(BaseModel):
    kind: FailureKind
    message: str
    details: str


class Job(BaseModel):
    id: str
    tenant: str
    priority: Priority
    state: State
    submitted: float = Field(description="Seconds since 1970, by the queue's clock; so are the other times.")
    started: float | None
    ended: float | None
    position: int | None = Field(description="Of a pending job within its tenant's queue, from 0.")
    attempts: int
    worker: str
    progress: Progress
    outputs: list[Output]
    failure: Failure | None
    cancelling: bool = Field(description="Its end was asked for, and its worker has not noticed yet.")
    note: str = Field(description="Why it was handed back the last time.")


class Jobs(BaseModel):
    jobs: list[Job]
    next: float | None = Field(description="`before` of the next page; null on the last.")


class Worker(BaseModel):
    """What only an admin sees is empty for others: host, job, loaded and image."""

    id: str
    state: str
    job: str
    gpu: str
    image: str
    target: str
    comfyui: str
    host: str
    loaded: list[str]
    models: int
    seen: float
    since: float
    done: int
    failed: int
    memory_used: int
    memory_total: int
    fallbacks: int


class Workers(BaseModel):
    workers: list[Worker]


class Queue(BaseModel):
    tenant: str
    priority: Priority
    waiting: int
    oldest: float | None = Field(description="Seconds that its first job has waited.")


class Queues(BaseModel):
    queues: list[Queue] = Field(description="The token's own; an admin's are all.")
    waiting: int = Field(description="Jobs waiting, of all tenants.")


class Input(BaseModel):
    key: str = Field(description="For `inputs` of a submission.")
    size: int
    sha256: str
    media_type: str


class Me(BaseModel):
    tenant: str
    admin: bool
    priority: Priority = Field(description="The highest that may be asked for.")
    rate: float = Field(description="Jobs a minute; 0 for any number.")
    depth: int = Field(description="Jobs that may wait.")


class Health(BaseModel):
    status: str


class Ready(BaseModel):
    status: str
    queue: str
    storage: str
