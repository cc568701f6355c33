"""Many jobs from many tenants at a rate, and how long each took: what a queue and its workers stand."""

from __future__ import annotations

import copy
import math
import random
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from comfywork.broker import Submission
from comfywork.errors import ComfyworkError, LimitError
from comfywork.views import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from comfywork.broker import Broker
    from comfywork.views import JobView

# No model and hardly any work: what is measured is the queue, unless another workflow is given.
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "load"}},
}
_LOOK = 0.2
_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds."""

    p50: float
    p90: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        ranked = sorted(values)

        def at(share: float) -> float:
            return ranked[min(len(ranked) - 1, max(0, math.ceil(share * len(ranked)) - 1))]

        return cls(p50=at(0.5), p90=at(0.9), p99=at(0.99), maximum=ranked[-1])


@dataclass(frozen=True, kw_only=True)
class Report:
    jobs: int
    tenants: int
    completed: int
    failed: int
    cancelled: int
    unfinished: int
    limited: int
    """Submissions that met a limit, and were tried again."""
    seconds: float
    """From the first submission to the last end."""
    throughput: float
    """Completed jobs a second in that time."""
    waited: Spread | None
    """From submission to taking."""
    ran: Spread | None
    """From the (first) taking to the end."""
    whole: Spread | None
    """From submission to end."""
    submitting: Spread | None
    """Of the call that submits."""
    unfairness: float | None
    """The tenants' longest mean wait over the shortest; 1 is even."""
    failures: dict[str, int] = field(default_factory=dict)
    """By class."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class LoadTest:
    """`rate` in jobs a second, 0 for as fast as they go; `timeout` seconds for all of them to end."""

    def __init__(
        self,
        broker: Broker,
        *,
        jobs: int,
        tenants: int,
        rate: float,
        timeout: float,
        workflow: dict[str, Any] | None = None,
        submitters: int = 4,
    ) -> None:
        self._broker, self._jobs, self._tenants, self._rate = broker, jobs, tenants, rate
        self._timeout, self._workflow = timeout, workflow or WORKFLOW
        self._submitters = min(submitters, jobs)
        self._lock = threading.Lock()
        self._next = 0
        self._stop = threading.Event()
        self._error: ComfyworkError | None = None
        self._calls: list[float] = []
        self._limited = 0
        self.ids: list[str] = []
        self.ended: dict[str, JobView] = {}

    def run(self, progress: Callable[[int, int], None] = lambda _submitted, _ended: None) -> Report:
        """Submit them all, wait for them all. ComfyworkError when submitting fails."""
        self._begin = time.monotonic()
        threads = [threading.Thread(target=self._submit, daemon=True) for _ in range(self._submitters)]
        for thread in threads:
            thread.start()
        end = self._begin + self._timeout
        try:
            while True:
                finished = not any(thread.is_alive() for thread in threads)
                self._look()
                progress(len(self.ids), len(self.ended))
                if self._error:
                    raise self._error
                if (finished and len(self.ended) == len(self.ids)) or time.monotonic() > end:
                    break
                time.sleep(_LOOK)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(5)
        return self.report()

    def cancel(self) -> None:
        """What has not ended."""
        for job_id in [job_id for job_id in self.ids if job_id not in self.ended]:
            self._broker.cancel(job_id)

    def _submit(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = self._next
                self._next += 1
            if number >= self._jobs:
                return
            if self._rate:
                self._stop.wait(max(0.0, self._begin + number / self._rate - time.monotonic()))
            try:
                self._one(number)
            except ComfyworkError as error:
                self._error = error
                return

    def _one(self, number: int) -> None:
        submission = Submission(
            workflow=_varied(self._workflow, number), tenant=tenant_of(number % self._tenants + 1)
        )
        while not self._stop.is_set():
            begin = time.monotonic()
            try:
                view = self._broker.submit(submission)
            except LimitError as error:
                with self._lock:
                    self._limited += 1
                self._stop.wait(min(error.after, 1.0))
                continue
            with self._lock:
                self._calls.append(time.monotonic() - begin)
                self.ids.append(view.id)
            return

    def _look(self) -> None:
        with self._lock:
            open_ = [job_id for job_id in self.ids if job_id not in self.ended]
        for begin in range(0, len(open_), _PAGE):
            for view in self._broker.views(open_[begin : begin + _PAGE]):
                if view.state in ENDED:
                    self.ended[view.id] = view

    def report(self) -> Report:
        views = list(self.ended.values())
        completed = [view for view in views if view.state == "completed"]
        taken = [view for view in views if view.started is not None]
        first = min((view.submitted for view in views), default=0.0)
        last = max((view.ended or 0.0 for view in views), default=0.0)
        seconds = max(0.0, last - first)
        failures: dict[str, int] = {}
        for view in views:
            if view.failure:
                failures[view.failure.kind] = failures.get(view.failure.kind, 0) + 1
        return Report(
            jobs=self._jobs,
            tenants=self._tenants,
            completed=len(completed),
            failed=sum(1 for view in views if view.state == "failed"),
            cancelled=sum(1 for view in views if view.state == "cancelled"),
            unfinished=self._jobs - len(views),
            limited=self._limited,
            seconds=seconds,
            throughput=len(completed) / seconds if seconds else 0.0,
            waited=Spread.of([(view.started or 0.0) - view.submitted for view in taken]),
            ran=Spread.of([(view.ended or 0.0) - (view.started or 0.0) for view in taken]),
            whole=Spread.of([(view.ended or 0.0) - view.submitted for view in completed]),
            submitting=Spread.of(self._calls),
            unfairness=_unfairness(taken),
            failures=failures,
        )


def tenant_of(number: int) -> str:
    return f"load-{number:03}"


def _unfairness(views: Sequence[JobView]) -> float | None:
    waits: dict[str, list[float]] = {}
    for view in views:
        waits.setdefault(view.tenant, []).append((view.started or 0.0) - view.submitted)
    means = [sum(found) / len(found) for found in waits.values()]
    if len(means) < 2 or min(means) <= 0:  # noqa: PLR2004
        return None
    return max(means) / min(means)


def _varied(workflow: dict[str, Any], number: int) -> dict[str, Any]:
    """Another seed or colour each time: ComfyUI runs nothing that it has just run."""
    found = copy.deepcopy(workflow)
    for node in found.values():
        for name in ("seed", "noise_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = random.getrandbits(48)
        if node["class_type"] == "EmptyImage":
            node["inputs"]["color"] = number % (1 << 24)
    return found
