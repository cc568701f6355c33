"""One way into the queue, whether Redis is at hand (Broker and storage) or only the HTTP API (Client)."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING, BinaryIO, Protocol

from comfywork.errors import ComfyworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from comfywork.broker import Broker, Submission
    from comfywork.names import Priority
    from comfywork.storage import Storage
    from comfywork.views import JobView, Output, QueueView, State, WorkerView


PIECE = 1 << 20


class Door(Protocol):
    """Every method raises ComfyworkError, and nothing else that a caller has to expect."""

    @property
    def tenant(self) -> str:
        """For whom, unless it is said."""
        ...

    def submit(self, submission: Submission) -> JobView: ...
    def status(self, job_id: str, tenant: str | None = None) -> JobView: ...
    def jobs(
        self,
        tenant: str | None = None,
        states: Iterable[State] | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> list[JobView]: ...
    def workers(self) -> list[WorkerView]: ...
    def queues(self) -> list[QueueView]: ...
    def cancel(self, job_id: str, tenant: str | None = None) -> JobView: ...
    def reprioritise(self, job_id: str, priority: Priority, tenant: str | None = None) -> JobView: ...
    def retry(self, job_id: str, tenant: str | None = None) -> JobView: ...
    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[JobView], None] | None = None,
        tenant: str | None = None,
    ) -> JobView: ...

    def upload(self, tenant: str, name: str, content: BinaryIO, size: int | None = None) -> str:
        """An input's key."""
        ...

    def download(self, job: JobView, output: Output) -> Iterator[bytes]: ...


class Direct:
    """Redis and the storage themselves."""

    def __init__(self, broker: Broker, environ: Mapping[str, str] | None = None) -> None:
        self.broker = broker
        self._environ = environ
        self._storage: Storage | None = None
        self.submit, self.status, self.jobs = broker.submit, broker.status, broker.jobs
        self.workers, self.queues, self.wait = broker.workers, broker.queues, broker.wait
        self.cancel, self.reprioritise, self.retry = broker.cancel, broker.reprioritise, broker.retry

    @property
    def tenant(self) -> str:
        return "default"

    @property
    def storage(self) -> Storage:
        """Opened when it is first wanted: most verbs need none."""
        if self._storage is None:
            from comfywork.storage import StorageSettings, open_storage  # noqa: PLC0415 - boto3 is slow to import

            self._storage = open_storage(
                StorageSettings.from_environment(self._environ), self.broker.connection
            )
        return self._storage

    def upload(self, tenant: str, name: str, content: BinaryIO, size: int | None = None) -> str:
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return self.storage.put_input(tenant, name, content, size, media_type).key

    def download(self, job: JobView, output: Output) -> Iterator[bytes]:
        if output not in job.outputs:
            raise ComfyworkError(f"{output.file} is no output of {job.id}")
        return pieces(self.storage, output)


def pieces(storage: Storage, output: Output) -> Iterator[bytes]:
    with storage.open(output.key) as opened:
        while piece := opened.read(PIECE):
            yield piece
