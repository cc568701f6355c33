"""One job on one ComfyUI: from its inputs to its outputs in the storage."""

from __future__ import annotations

import mimetypes
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from comfywork import workflow
from comfywork.comfy import ComfyAwayError, ComfyGoneError, FileGoneError, RejectedError
from comfywork.errors import ComfyworkError, ConfigError
from comfywork.jobs import OURS
from comfywork.storage import MissingError, Place, StorageError, TooLargeError, output_name
from comfywork.views import Failure, Output

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from comfywork.comfy import Comfy, Ended, File
    from comfywork.jobs import Task
    from comfywork.lease import Lease
    from comfywork.storage import Storage, Stored
    from comfywork.trail import Trail
    from comfywork.views import FailureKind, Progress

T = TypeVar("T")

# Seconds for which a storage is asked again that is down, or that somebody has to mend; the lease is kept meanwhile.
_STORAGE_PATIENCE, _MENDING = 600.0, 30.0
_STUBBORN = 60.0  # seconds that ComfyUI may take to notice an interrupt
_HURRIED = 3.0  # the same for a worker whose time is over
SUBMITTED = "comfywork_prompt"
_JOB = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class JobFailed(Exception):  # noqa: N818 - an outcome
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class HandBack(Exception):  # noqa: N818 - an outcome
    """Somebody else should do it. `ends`: what this worker ends with, since it would fail with every other job, too."""

    def __init__(self, why: str, *, counted: bool, ends: ComfyworkError | None = None) -> None:
        super().__init__(why)
        self.why, self.counted, self.ends = why, counted, ends


class Cancelled(Exception):  # noqa: N818 - an outcome
    pass


class StuckError(ComfyworkError):
    """ComfyUI goes on with a prompt that it was told to end: only a restart helps."""

    exit_code = 75

    def __init__(self, job_id: str, outcome: JobFailed | HandBack | Cancelled) -> None:
        super().__init__(
            f"ComfyUI does not end {job_id}, {_STUBBORN:g} s after it was told to", hint="it is started again"
        )
        self.outcome = outcome
        """How the job ends: that ComfyUI hangs is not its fault, unless it is what made it run too long."""


@dataclass(kw_only=True)
class Wishes:
    """What others want of the job that runs."""

    cancel: threading.Event
    give_up: threading.Event
    """The time for finishing it is over: the worker has to go."""
    lost: threading.Event
    """The lease is somebody else's."""

    def any(self) -> bool:
        return self.cancel.is_set() or self.give_up.is_set() or self.lost.is_set()


@dataclass(frozen=True, kw_only=True)
class Execution:
    comfy: Comfy
    storage: Storage
    wishes: Wishes
    progress: Callable[[Progress], None]
    say: Callable[[str], None]
    trail: Trail | None = None
    """For a job that wants to be shown as it runs."""
    input_folder: Path | None = None
    output_folder: Path | None = None

    def run(self, lease: Lease, tenant: str, task: Task, timeout: float) -> tuple[Output, ...]:
        """Its outputs, staged under the lease's token. Raises JobFailed, HandBack, Cancelled or StuckError."""
        end = time.monotonic() + timeout
        try:
            ended = self._generated(lease.job, task, end, first=lease.first)
            try:
                return self._stored(lease, tenant, _wanted(ended, task))
            except FileGoneError:
                # A node whose result was cached names a file of an earlier job, which is gone by now.
                self.say("an output was cached, and is gone: once more, without the cache")
                self.comfy.free(models=False)
                self.comfy.forget(lease.job)
                return self._stored(lease, tenant, _wanted(self._generated(lease.job, task, end), task))
        except FileGoneError as error:
            raise JobFailed(Failure(kind="execution", message=str(error))) from None
        except ConfigError as error:  # a name that no storage takes: this job's own
            raise JobFailed(Failure(kind="invalid", message=str(error))) from None
        except ComfyGoneError as error:
            self._wished()
            raise HandBack(str(error), counted=True) from None

    def clean(self, job_id: str) -> None:
        """Forget what ComfyUI still holds of it."""
        with suppress(ComfyworkError):
            self.comfy.forget(job_id)
        for folder in (self.input_folder, self.output_folder):
            if folder is not None:
                shutil.rmtree(folder / job_id, ignore_errors=True)

    # --- generating ------------------------------------------------------------------------------

    def _generated(self, job_id: str, task: Task, end: float, *, first: bool = False) -> Ended:
        ended = self._prompted(job_id, task, end, first=first)
        if ended.status == "error" and ended.out_of_memory:
            self.say("out of GPU memory: models are unloaded, and it is tried once more")
            self.comfy.free(models=True)
            self.comfy.forget(job_id)
            ended = self._prompted(job_id, task, end)
        if ended.status == "success":
            if self.trail is not None:
                self.trail.ended(ended.history)
            return ended
        self._wished()
        if ended.status == "interrupted":
            raise HandBack(ended.message, counted=True)
        kind: FailureKind = "memory" if ended.out_of_memory else "execution"
        raise JobFailed(Failure(kind=kind, message=ended.message, details=ended.details))

    def _prompted(self, job_id: str, task: Task, end: float, *, first: bool = False) -> Ended:
        self._wished()
        self.comfy.listen_early()
        # An agent that was killed left its prompt behind: it is asked for before it is submitted again. Where nobody
        # had the job before, there was no such agent.
        found = "nowhere" if first else self.comfy.where(job_id)
        if found == "nowhere":
            places = self._placed(job_id, task)
            graph = _apart(workflow.with_files(task.workflow, places), job_id)
            try:
                self.comfy.submit(job_id, graph, _extra(task), task.ours.get("targets"))
            except RejectedError as error:
                raise JobFailed(Failure(kind="invalid", message=str(error), details=error.details)) from None
            except ComfyAwayError as error:
                self._wished()
                raise HandBack(str(error), counted=False) from None
        else:
            self.say(f"ComfyUI has it already, in its {found}")
        asked: list[float] = []
        late = False

        def expired() -> bool:
            nonlocal late
            late = late or time.monotonic() > end
            if not asked and (late or self.wishes.any()):
                asked.append(time.monotonic())
                self.comfy.interrupt(job_id)
            # Who has to go does not wait for ComfyUI, which goes too.
            patience = _HURRIED if self.wishes.give_up.is_set() else _STUBBORN
            return bool(asked) and time.monotonic() - asked[0] > patience

        too_long = JobFailed(Failure(kind="timeout", message="it ran longer than its timeout"))
        try:
            hear = None if self.trail is None else self.trail.hear
            ended = self.comfy.follow(job_id, len(task.workflow), self.progress, expired, hear)
        except TimeoutError:
            if self.wishes.give_up.is_set():
                self._wished()
            raise StuckError(job_id, self._wish() or too_long) from None
        if ended.status == "interrupted" and late and not self.wishes.any():
            raise too_long
        return ended

    def _wished(self) -> None:
        if wish := self._wish():
            raise wish

    def _wish(self) -> Cancelled | HandBack | None:
        if self.wishes.cancel.is_set():
            return Cancelled()
        if self.wishes.give_up.is_set():
            return HandBack("its worker was stopped", counted=False)
        if self.wishes.lost.is_set():
            return HandBack("its lease is another worker's", counted=True)
        return None

    def _placed(self, job_id: str, task: Task) -> dict[str, str]:
        """Every input in ComfyUI's input folder, in a subfolder of the job's own."""
        places: dict[str, str] = {}
        taken: set[str] = set()
        for name, key in task.inputs.items():
            plain = _plain(name)
            if plain in taken:  # a/x.png and b/x.png are two files
                plain = f"{len(taken)}_{plain}"
            taken.add(plain)
            try:
                places[name] = self._patiently(
                    lambda key=key, plain=plain: self._fetched(job_id, key, plain)  # type: ignore[misc]
                )
            except MissingError as error:
                raise JobFailed(Failure(kind="inputs", message=f"input {name}: {error}")) from None
            except RejectedError as error:
                raise JobFailed(Failure(kind="inputs", message=str(error), details=error.details)) from None
            except OSError as error:
                raise HandBack(
                    f"input {name} cannot be written here: {error.strerror or error}", counted=True
                ) from None
        return places

    def _fetched(self, job_id: str, key: str, plain: str) -> str:
        with self.storage.open(key) as content:
            if self.input_folder is None:
                return self.comfy.upload(plain, job_id, cast("IO[bytes]", content))
            folder = self.input_folder / job_id
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / plain).open("wb") as file:
                shutil.copyfileobj(content, file)
            return f"{job_id}/{plain}"

    # --- storing ---------------------------------------------------------------------------------

    def _stored(self, lease: Lease, tenant: str, files: tuple[File, ...]) -> tuple[Output, ...]:
        outputs = []
        for file in files:
            self._wished()
            name = output_name(file.node, file.number, file.name)
            outputs.append(
                self._patiently(
                    lambda file=file, name=name: self._one(lease, tenant, file, name)  # type: ignore[misc]
                )
            )
        self._wished()
        return tuple(outputs)

    def _one(self, lease: Lease, tenant: str, file: File, name: str) -> Output:
        place = Place(tenant=tenant, job=lease.job, token=lease.token, name=name)
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        try:
            stored = self._staged_here(file, place, media_type)
            if stored is None:
                with self.comfy.open(file) as (answer, size):
                    content = cast("BinaryIO", _Pieces(answer.iter_bytes(1 << 18)))
                    stored = self.storage.stage(place, content, size, media_type)
        except TooLargeError as error:
            raise JobFailed(Failure(kind="storage", message=str(error))) from None
        return Output(
            key=place.key,
            node=file.node,
            name=file.name,
            media_type=stored.media_type,
            size=stored.size,
            sha256=stored.sha256,
        )

    def _staged_here(self, file: File, place: Place, media_type: str) -> Stored | None:
        """From ComfyUI's own folder, where this process sees it. None when it has to be asked for."""
        if self.output_folder is None or file.kind != "output":
            return None
        top = self.output_folder.resolve()
        path = (top / file.subfolder / file.name).resolve()
        if not path.is_relative_to(top) or not path.is_file():
            return None
        try:
            with path.open("rb") as content:
                size = os.fstat(content.fileno()).st_size
                return self.storage.stage(place, content, size, media_type)
        except OSError:
            return None

    def discard(self, tenant: str, lease: Lease) -> None:
        """What was staged will never be published."""
        with suppress(StorageError):
            self.storage.discard(tenant, lease.job, lease.token)

    def publish(self, tenant: str, job_id: str, token: int, outputs: tuple[Output, ...]) -> None:
        """Put what was staged under its final keys. MissingError when it is nowhere."""
        places = [Place(tenant=tenant, job=job_id, token=token, name=output.file) for output in outputs]
        if places:
            self._patiently(lambda: self.storage.publish(places))

    def _patiently(self, act: Callable[[], T]) -> T:
        """While the storage is down, again and again; the GPU waits, and the result is not lost."""
        begin, pause, told = time.monotonic(), 0.5, False
        while True:
            try:
                return act()
            except MissingError:
                raise
            except StorageError as error:
                patience = _STORAGE_PATIENCE if error.retryable else min(_MENDING, _STORAGE_PATIENCE)
                if not told:
                    self.say(f"{error}; it is tried again for {patience:g} s")
                    told = True
                self._wished()
                if time.monotonic() + pause - begin > patience:
                    # A worker that can store nothing would fail one job after the other.
                    raise HandBack(
                        f"the storage does not answer: {error}",
                        counted=True,
                        ends=None if error.retryable else error,
                    ) from None
                self.wishes.give_up.wait(pause)
                pause = min(2 * pause, 10.0)


def sweep(folders: Iterable[Path | None], keep: str) -> None:
    """Take away what jobs of this ComfyUI left in its folders when their agent was killed. `keep` is the job it holds."""
    for folder in folders:
        if folder is None or not folder.is_dir():
            continue
        for left in folder.iterdir():
            if left.name != keep and _JOB.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)


class _Pieces:
    """Pieces of bytes as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._left) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._left = self._left + piece if self._left else piece
        taken = self._left if size < 0 else self._left[:size]
        self._left = b"" if size < 0 else self._left[size:]
        return taken


def _wanted(ended: Ended, task: Task) -> tuple[File, ...]:
    return ended.shown if task.ours.get("previews") else ended.files


def _extra(task: Task) -> dict[str, Any]:
    """What ComfyUI is told beside the graph: not what is meant for us; and the graph as it was submitted.

    Nodes that write the graph into their files write this one (see nodes/queuefront/embed.py).
    """
    extra = {name: value for name, value in task.extra.items() if name != OURS}
    return {**extra, SUBMITTED: task.workflow}


def _apart(graph: Mapping[str, Any], job_id: str) -> dict[str, Any]:
    """Every file that is saved goes into a folder of the job's own.

    So no two jobs write one file, and a node that saves is never taken from ComfyUI's cache, which would name the file
    of an earlier job.
    """
    return {
        node: {**value, "inputs": {**value["inputs"], "filename_prefix": f"{job_id}/{prefix.lstrip('/')}"}}
        if isinstance(prefix := value["inputs"].get("filename_prefix"), str)
        else value
        for node, value in graph.items()
    }


def _plain(name: str) -> str:
    """A file name with nothing in it that a path could mean."""
    return (
        re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("\\", "/").rpartition("/")[2]).lstrip(".")[:120]
        or "file"
    )
