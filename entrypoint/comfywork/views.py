"""What a queue shows: jobs, workers, queues. Plain values, the same for Python, the command line and the HTTP API."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from comfywork.names import Priority  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

State = Literal["pending", "processing", "completed", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("completed", "failed", "cancelled")

FailureKind = Literal[
    "invalid", "execution", "memory", "timeout", "comfyui", "worker", "storage", "inputs", "foreign"
]
"""ComfyUI refused it · a node raised · out of GPU memory · too long · ComfyUI died of it · workers died of it · its
outputs could not be stored · its inputs could not be read · it is no job of ours."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file that a job made. `key` is its place in the storage."""

    key: str
    node: str
    name: str
    """As ComfyUI called it."""
    media_type: str
    size: int
    """Bytes."""
    sha256: str

    @property
    def file(self) -> str:
        """The last part of its key: `{node}_{n}.ext`."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Failure:
    kind: FailureKind
    message: str
    details: str = ""
    """For whoever looks closer: a traceback, ComfyUI's own answer."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    value: int = 0
    maximum: int = 0
    node: str = ""
    done: int = 0
    """Nodes of the workflow that have run."""
    nodes: int = 0

    @property
    def fraction(self) -> float:
        """From 0 to 1: nodes that have run, and the steps of the one that runs."""
        if not self.nodes:
            return 0.0
        step = self.value / self.maximum if self.maximum else 0.0
        return min(1.0, (self.done + step) / self.nodes)


@dataclass(frozen=True, kw_only=True)
class JobView:
    id: str
    tenant: str
    priority: Priority
    state: State
    submitted: float
    """Seconds since 1970, by Redis' clock, as are all times here."""
    started: float | None = None
    ended: float | None = None
    position: int | None = None
    """Of a pending job within its tenant's queue, from 0."""
    attempts: int = 0
    """Times that it was begun."""
    worker: str = ""
    progress: Progress = Progress()
    outputs: tuple[Output, ...] = ()
    failure: Failure | None = None
    cancelling: bool = False
    """Somebody asked for its end, and the worker has not noticed yet."""
    note: str = ""
    """Why it was handed back the last time."""

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "progress": {**asdict(self.progress), "fraction": round(self.progress.fraction, 4)},
        }

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> JobView:
        """The inverse of `as_dict`; what a newer server says beyond it is left out."""
        failure = found.get("failure")
        return _made(
            cls,
            {
                **found,
                "progress": _made(Progress, found.get("progress") or {}),
                "outputs": tuple(_made(Output, output) for output in found.get("outputs") or ()),
                "failure": _made(Failure, failure) if failure else None,
            },
        )


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    id: str
    state: str
    """starting · idle · busy · draining"""
    job: str = ""
    gpu: str = ""
    image: str = ""
    target: str = ""
    comfyui: str = ""
    host: str = ""
    loaded: tuple[str, ...] = ()
    """Model files of the workflow that it ran last."""
    models: int = 0
    seen: float = 0.0
    """Second of its last heartbeat."""
    since: float = 0.0
    done: int = 0
    failed: int = 0
    memory_used: int = 0
    """Bytes of the GPU's memory, or of the machine's where it is one."""
    memory_total: int = 0
    fallbacks: int = 0
    """Attention calls that fell back from their kernel to PyTorch."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> WorkerView:
        return _made(cls, {**found, "loaded": tuple(found.get("loaded") or ())})


@dataclass(frozen=True, kw_only=True)
class QueueView:
    tenant: str
    priority: Priority
    waiting: int
    oldest: float | None
    """Seconds that its first job has waited."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> QueueView:
        return _made(cls, found)


def _made(kind: type[T], found: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in known})
