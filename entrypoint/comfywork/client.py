"""The queue over its HTTP API: the same methods and values as Broker, for programs that Redis is not open to.

from comfywork.client import Client
from comfywork.broker import Submission

with Client("https://queue.example.org", token) as client:
    job = client.submit(Submission(workflow=workflow, tenant="user001"))
    job = client.wait(job.id)
    for output in job.outputs:
        client.save(job, output, Path(output.file))
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote, urlsplit

import httpx

from comfywork import __version__
from comfywork.errors import (
    ComfyworkError,
    ConfigError,
    ConflictError,
    LimitError,
    QueueError,
    RefusedError,
    UnknownJobError,
)
from comfywork.views import ENDED, JobView, Output, QueueView, State, WorkerView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from comfywork.broker import Submission
    from comfywork.names import Priority

TIMEOUT = 30.0  # seconds for one answer
PATIENCE = 60.0  # seconds of 429, 503 and connections that fail, all together
DEFAULT_TENANT = "default"
_LOOK = (0.2, 2.0)  # seconds between two looks at a job: from, to
_AGAIN = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE)
_PIECE = 1 << 20


class Client:
    """`patience`: seconds for which 429, 502, 503 and lost connections are tried again, in the server's own time.

    Trying again is safe: a submission carries its id, and everything else may be repeated.
    """

    def __init__(
        self,
        server: str,
        token: str,
        *,
        patience: float = PATIENCE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url = urlsplit(server)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"{server!r} is no address of an API", hint="http://127.0.0.1:8190")
        if not token or not token.isascii() or any(c.isspace() for c in token):
            raise ConfigError(
                "a token is one word of ASCII",
                hint="whoever runs the queue makes one: comfyrun api token TENANT",
            )
        self.server = server.rstrip("/")
        self._patience, self._tenant = patience, ""
        self._http = httpx.Client(
            base_url=f"{self.server}/v1/",
            headers={"Authorization": f"Bearer {token}", "User-Agent": f"comfywork/{__version__}"},
            timeout=TIMEOUT,
            transport=transport,
        )

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] | None = None) -> Client:
        """COMFYWORK_API and COMFYWORK_TOKEN, or COMFYWORK_TOKEN_FILE."""
        environ = os.environ if environ is None else environ
        token = environ.get("COMFYWORK_TOKEN", "")
        if file := environ.get("COMFYWORK_TOKEN_FILE"):
            token = read_token(Path(file))
        return cls(environ.get("COMFYWORK_API", "http://127.0.0.1:8190"), token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def tenant(self) -> str:
        """Whose token it is."""
        if not self._tenant:
            self._tenant = str(self._call("GET", "me")["tenant"])
        return self._tenant

    def _for(self, tenant: str) -> str:
        """A submission that names no tenant is the token's own."""
        return self.tenant if tenant == DEFAULT_TENANT else tenant

    # --- the same as Broker ----------------------------------------------------------------------

    def submit(self, submission: Submission) -> JobView:
        body = {
            "workflow": submission.workflow,
            "tenant": self._for(submission.tenant),
            "priority": submission.priority,
            "id": submission.id,
            "inputs": dict(submission.inputs),
            "timeout": submission.timeout,
            "extra": dict(submission.extra),
        }
        return JobView.of_dict(self._call("POST", "jobs", json=body))

    def status(self, job_id: str, tenant: str | None = None) -> JobView:
        view = JobView.of_dict(self._call("GET", f"jobs/{quote(job_id, safe='')}"))
        if tenant is not None and view.tenant != tenant:
            raise UnknownJobError(f"there is no job {job_id}", hint="comfyrun jobs lists them")
        return view

    def jobs(
        self,
        tenant: str | None = None,
        states: Iterable[State] | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> list[JobView]:
        """The latest first."""
        found: list[JobView] = []
        wanted = None if states is None else list(states)
        while len(found) < limit:
            parameters: dict[str, Any] = {"limit": min(200, limit - len(found))}
            if tenant is not None:
                parameters["tenant"] = tenant
            if wanted is not None:
                parameters["state"] = wanted
            if before is not None:
                parameters["before"] = repr(before)
            page = self._call("GET", "jobs", params=parameters)
            found += [JobView.of_dict(job) for job in page["jobs"]]
            before = page["next"]
            if before is None:
                break
        return found

    def workers(self) -> list[WorkerView]:
        return [WorkerView.of_dict(worker) for worker in self._call("GET", "workers")["workers"]]

    def queues(self) -> list[QueueView]:
        return [QueueView.of_dict(queue) for queue in self._call("GET", "queues")["queues"]]

    def cancel(self, job_id: str, tenant: str | None = None) -> JobView:
        self.status(job_id, tenant)
        return JobView.of_dict(self._call("POST", f"jobs/{job_id}/cancel"))

    def reprioritise(self, job_id: str, priority: Priority, tenant: str | None = None) -> JobView:
        self.status(job_id, tenant)
        return JobView.of_dict(self._call("PUT", f"jobs/{job_id}/priority", json={"priority": priority}))

    def retry(self, job_id: str, tenant: str | None = None) -> JobView:
        self.status(job_id, tenant)
        # Each call makes a new job: no second try when an answer was lost.
        return JobView.of_dict(self._call("POST", f"jobs/{job_id}/retry", repeat=False))

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[JobView], None] | None = None,
        tenant: str | None = None,
    ) -> JobView:
        """The job when it has ended. LimitError when `timeout` seconds are over before."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = _LOOK[0]
        while True:
            view = self.status(job_id, tenant)
            if progress:
                progress(view)
            if view.state in ENDED:
                return view
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise LimitError(
                    f"{job_id} has not ended after {timeout:g} s", hint=f"comfyrun status {job_id}"
                )
            time.sleep(pause if left is None else min(pause, left))
            pause = min(_LOOK[1], pause * 1.2)

    # --- files -----------------------------------------------------------------------------------

    def upload(self, tenant: str, name: str, content: BinaryIO, size: int | None = None) -> str:
        """An input's key, for `Submission.inputs`."""
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        begin = content.tell() if content.seekable() else None

        def pieces() -> Iterator[bytes]:
            if begin is not None:
                content.seek(begin)
            while piece := content.read(_PIECE):
                yield piece

        answer = self._call(
            "POST",
            "inputs",
            params={"name": name, "tenant": self._for(tenant)},
            make_content=pieces,
            headers=headers,
            repeat=begin is not None,
        )
        return str(answer["key"])

    def download(self, job: JobView, output: Output) -> Iterator[bytes]:
        """Raises when less arrives than the output has."""
        path = f"jobs/{job.id}/outputs/{quote(output.file, safe='')}"
        arrived = 0
        try:
            with self._http.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                for piece in response.iter_bytes(_PIECE):
                    arrived += len(piece)
                    yield piece
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        if arrived != output.size:
            raise QueueError(f"{output.file}: {arrived} of {output.size} bytes arrived", hint="try again")

    def save(self, job: JobView, output: Output, path: Path) -> None:
        """Whole, or not at all."""
        save(self.download(job, output), path)

    # --- HTTP ------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        *,
        repeat: bool = True,
        make_content: Callable[[], Iterator[bytes]] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        end = time.monotonic() + self._patience
        pause = 0.2
        while True:
            after = pause * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients do not come back all at once
            try:
                content = make_content() if make_content else None
                response = self._http.request(method, path, content=content, **more)
            except httpx.TransportError as error:
                failure: ComfyworkError = self._lost(error)
                if not repeat and not isinstance(error, httpx.ConnectError):
                    raise failure from None
            else:
                if not response.is_error:
                    return self._json(response)
                failure = _error(response)
                if response.status_code not in _AGAIN:
                    raise failure
                with contextlib.suppress(ValueError):
                    after = max(after, float(response.headers.get("Retry-After", "")))
            if time.monotonic() + after > end:
                raise failure
            time.sleep(after)
            pause = min(5.0, 2 * pause)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise QueueError(
                f"{self.server} answers, and is no API of a queue", hint="check the address: --server URL"
            )
        return found

    def _lost(self, error: Exception) -> QueueError:
        return QueueError(
            f"{self.server} cannot be reached ({str(error) or type(error).__name__})",
            hint="check the address, and that `comfyrun api` runs there",
        )


def read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the token cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None


def save(pieces: Iterator[bytes], path: Path) -> None:
    """Write a file whole, or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _error(response: httpx.Response) -> ComfyworkError:
    """The server's own words, as the error that Broker would have raised."""
    try:
        problem = response.json()
        message, hint = str(problem["detail"]), str(problem.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint = f"{response.request.url}: {response.status_code} {response.reason_phrase}", ""
    match response.status_code:
        case 401 | 403:
            return RefusedError(message, hint=hint)
        case 404:
            return UnknownJobError(message, hint=hint)
        case 409:
            return ConflictError(message, hint=hint)
        case 429:
            try:
                after = float(response.headers.get("Retry-After", "1"))
            except ValueError:
                after = 1.0
            return LimitError(message, hint=hint, after=after)
        case status if status >= 500:  # noqa: PLR2004
            return QueueError(message, hint=hint)
        case _:
            return ConfigError(message, hint=hint)
