"""The queue and its workers as compose files: settings, by the names of the document for GPU workers, and services."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgbuild.deploy.argv import tmpfs
from imgbuild.deploy.deployment import deploy, spell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.deploy.deployment import Deployment
    from imgbuild.plan import Plan
    from imgbuild.render import Files, Renderer

NAME = "workers"
"""What `imgbuild compose` calls it; no target may have that name."""
GPU_TARGET = "h100"
"""Whose image a worker's is unless WORKER_IMAGE says otherwise."""
NUMBERED = 3
"""Services worker-1 to worker-3, as the document has them."""

KUBERNETES = ("kustomization", "redis", "api", "worker", "network", "scaling")

For = Literal["queue", "worker", "storage", "compose"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    name: str
    about: str
    default: str = ""
    """As compose takes it where nobody sets it."""
    of: For
    """Who reads it: both sides, workers only, both sides for files; or the compose file alone."""
    example: str = ""
    """For the example file, where the default is empty."""


def _all(of: For, *rows: tuple[str, str, str] | tuple[str, str, str, str]) -> tuple[Setting, ...]:
    return tuple(Setting(of=of, name=r[0], default=r[1], about=r[2], example="".join(r[3:])) for r in rows)


REDIS = _all(
    "queue",
    ("REDIS_HOST", "redis", "the queue's machine; on the GPU machine its address, such as one of a VPN"),
    ("REDIS_PORT", "6379", ""),
    ("REDIS_USER", "", "an ACL user; none is Redis' own `default`", "worker"),
    ("REDIS_DB", "", "a database's number", "0"),
    ("REDIS_TLS", "false", "true with the profile tls, or a Redis elsewhere that has TLS"),
)
SECRET = _all(
    "compose",
    ("REDIS_CA_FILE", "", "its certificate authority, a file of this machine", "./secrets/redis-ca.pem"),
    (
        "REDIS_PASSWORD_FILE",
        "./secrets/redis-password",
        "REDIS_PASSWORD: a file with it, and nothing but it; here it would stand in `docker inspect`",
    ),
)
WORKER = _all(
    "worker",
    ("NUM_WORKERS", "1", "ComfyUIs in one container; see docs/workers.md about sharing a GPU"),
    (
        "WORKER_GPU_MEMORY_LIMIT",
        "",
        "of GPU memory, for one container; comfyrun check says what bounds it",
        "70G",
    ),
    ("WORKER_HEARTBEAT_TIMEOUT", "60", "seconds of silence after which a worker counts as dead"),
    ("WORKER_POLL_INTERVAL", "2", "seconds between two looks at the queue, when no bell rings"),
    ("WORKER_JOB_TIMEOUT", "3600", "seconds for one job; above the longest film"),
    ("WORKER_ATTEMPTS", "3", "times that a job is begun"),
    (
        "WORKER_DRAIN_TIMEOUT",
        "60",
        "seconds for the job that runs, when its worker is stopped; then it is handed back",
    ),
)
LIMITS = _all(
    "queue",
    ("QUEUE_MAX_WORKFLOW", "8MB", "of a workflow as JSON"),
    ("QUEUE_DEPTH_PER_TENANT", "200", "jobs that one tenant may have waiting"),
    ("QUEUE_RATE_PER_TENANT", "", "jobs a minute that one tenant may submit", "60"),
    ("RESULT_TTL", "7d", "for which an ended job is remembered"),
)
STORAGE = _all(
    "storage",
    ("STORAGE", "volume", "volume on one machine; s3, or queue for small outputs, on two"),
    ("RETENTION", "", "after which outputs are deleted; RETENTION_<TENANT> for one tenant", "7d"),
    ("S3_ENDPOINT", "", "", "https://s3.example.com"),
    ("S3_BUCKET", "", "", "comfyui"),
    ("S3_REGION", "", "", "eu-central-1"),
    ("S3_PREFIX", "", "", "workshop"),
    ("S3_ACCESS_KEY", "", "", "a key that may use this bucket alone"),
)
FOLDERS = _all(
    "compose",
    ("MODELS_PATH", "comfy-models", "a folder or a volume; read-only for workers"),
    ("OUTPUTS_PATH", "comfy-outputs", "STORAGE=volume: results"),
    ("INPUTS_PATH", "comfy-inputs", "STORAGE=volume: what is uploaded"),
    ("WORKFLOWS_PATH", "comfy-workflows", "workflows to submit from the api's container"),
)
LOGGING = _all(
    "queue",
    ("LOG_LEVEL", "INFO", ""),
    ("DEBUG", "false", ""),
    ("VERBOSE_LOGS", "false", ""),
)
COMPOSE = _all(
    "compose",
    ("WORKER_RESTART_POLICY", "unless-stopped", "of the worker's container"),
    ("WORKER_STOP_GRACE", "90s", "until the engine kills; more than WORKER_DRAIN_TIMEOUT and 10 s"),
    ("WORKER_IMAGE", f"comfyui:{GPU_TARGET}", ""),
    ("WORKER_GPU", "0", "an index, or the UUID of a GPU or MIG slice (nvidia-smi -L)"),
    ("WORKER_MEMORY", "0", "host memory of one worker, 0 for no limit; it bounds no GPU memory"),
    ("API_IMAGE", "comfyui:cpu", "api, dashboard and models need no GPU"),
    ("API_ADDRESS", "127.0.0.1", ""),
    ("API_PORT", "8190", ""),
    ("TENANTS_PATH", "./tenants", "a folder with tokens.yaml: comfyrun api token"),
    ("REDIS_IMAGE", "redis:7-alpine", "any with sh, redis-server 7 and redis-cli"),
    ("REDIS_MEMORY", "2gb", "maxmemory; beyond it submissions are refused, and nothing is lost"),
    ("QUEUE_ADDRESS", "127.0.0.1", "where the queue is published: the VPN's address, never 0.0.0.0"),
    ("QUEUE_PORT", "6379", ""),
    ("QUEUE_DATA", "comfy-queue", "the queue itself: a folder or a volume that QUEUE_USER may write"),
    ("QUEUE_USER", "999:1000", "of Redis; its group has to be able to read the secrets"),
    ("FRONT_TENANT", "user001", "whose page the service `front` is"),
    ("FRONT_API", "http://api:8190", ""),
    ("FRONT_ADDRESS", "127.0.0.1", ""),
    ("FRONT_PORT", "8188", ""),
    ("FRONT_DATA", "comfy-front-data", "that tenant's pictures and workflows"),
    ("FRONT_CACHE", "comfy-front-cache", ""),
    ("DASHBOARD_ADDRESS", "127.0.0.1", ""),
    ("DASHBOARD_PORT", "9181", ""),
    ("COMFYUI_USER", "1000:1000", "of everything else"),
    ("COMFYUI_DATA", "comfy-data", "custom nodes"),
    ("COMFYUI_CACHE", "comfy-cache", "what is compiled, and what a job works on"),
    ("COMFYUI_SECRETS", "./secrets", ""),
    ("COMFYUI_ARGS", "", "ComfyUI's own flags", "--preview-method none"),
)

SECTIONS: tuple[tuple[str, tuple[Setting, ...]], ...] = (
    ("The queue", (*REDIS, *SECRET)),
    ("Workers", WORKER),
    ("Models and files", (*FOLDERS, *STORAGE)),
    ("Limits", LIMITS),
    ("Logging", LOGGING),
    ("Of the compose file", COMPOSE),
)


@dataclass(frozen=True, kw_only=True)
class _View:
    again: str
    folder: str
    common: tuple[Setting, ...]
    """For everybody who talks to the queue."""
    worker: tuple[Setting, ...]
    numbered: tuple[str, ...]
    compose: dict[str, str]
    """Defaults of what only the file reads, by name."""
    sections: tuple[tuple[str, tuple[Setting, ...]], ...]
    tmpfs: str
    shm: str
    log_size: str


def worker_files(renderer: Renderer, plan: Plan, *, again: str, folder: str = "") -> Files:
    """workers.yaml, its overlay for machines without a GPU, and the example of its settings.

    `plan` is the GPU target whose image is the standard.
    """
    d = deploy(plan)
    view = _view(d, again=again, folder=f"{folder}/" if folder else "")
    return {
        f"{NAME}.yaml": renderer.text("compose/workers.yaml.j2", d=d, v=view),
        f"{NAME}-cpu.yaml": renderer.text("compose/workers-cpu.yaml.j2", d=d, v=view),
        f"{NAME}.env": renderer.text("compose/workers.env.j2", d=d, v=view),
        **{
            f"kubernetes/{name}.yaml": renderer.text(f"compose/kubernetes/{name}.yaml.j2", d=d, v=view)
            for name in KUBERNETES
        },
    }


def _view(d: Deployment, *, again: str, folder: str) -> _View:
    every = [s for _, settings in SECTIONS for s in settings]
    return _View(
        again=again,
        folder=folder,
        common=tuple(s for s in every if s.of in ("queue", "storage")),
        worker=tuple(s for s in every if s.of == "worker"),
        numbered=tuple(f"worker-{n}" for n in range(1, NUMBERED + 1)),
        compose={s.name: s.default for s in every if s.of == "compose"},
        sections=SECTIONS,
        tmpfs=tmpfs(d),
        shm=spell(d.shm),
        log_size=spell(d.log_size),
    )


def standard_plan(plans: Sequence[Plan]) -> Plan | None:
    return next((p for p in plans if p.name == GPU_TARGET), None)
