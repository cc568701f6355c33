"""One way into the queue, whether Redis is at hand (Broker and storage) or only the HTTP API (Client)."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol

from comfywork.errors import ComfyworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from comfywork.broker import Broker, Submission
    from comfywork.files import Files
    from comfywork.names import Priority
    from comfywork.views import JobView, Output, QueueView, State, WorkerView


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

    def __init__(self, broker: Broker, open_files: Callable[[], Files]) -> None:
        self.broker = broker
        self._open = open_files
        self._found: Files | None = None
        self.submit, self.status, self.jobs = broker.submit, broker.status, broker.jobs
        self.workers, self.queues, self.wait = broker.workers, broker.queues, broker.wait
        self.cancel, self.reprioritise, self.retry = broker.cancel, broker.reprioritise, broker.retry

    @property
    def tenant(self) -> str:
        return "default"

    @property
    def files(self) -> Files:
        if self._found is None:
            self._found = self._open()
        return self._found

    def upload(self, tenant: str, name: str, content: BinaryIO, size: int | None = None) -> str:
        return self.files.put(tenant, name, content, size).key

    def download(self, job: JobView, output: Output) -> Iterator[bytes]:
        if output not in job.outputs:
            raise ComfyworkError(f"{output.file} is no output of {job.id}")
        return self.files.pieces(output)
