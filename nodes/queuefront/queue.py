"""ComfyUI's own prompt queue, whose prompts are jobs of the queue elsewhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import execution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Item = tuple[Any, ...]


class Jobs(Protocol):
    def submit(self, item: Item) -> None: ...
    def cancel(self, jobs: Iterable[str], *, shown: bool) -> None: ...


class RemoteQueue(execution.PromptQueue):  # type: ignore[misc]
    """Shows jobs as pending or running, and never gives one to the executor of this process."""

    def __init__(self, server: Any, jobs: Jobs) -> None:
        super().__init__(server)
        self._jobs = jobs

    # --- as ComfyUI calls it ---------------------------------------------------------------------

    def put(self, item: Item) -> None:
        self.show(item)
        self._jobs.submit(item)

    def get(self, timeout: float | None = None) -> None:
        """Nothing is executed here; ComfyUI's worker thread still frees memory when it is told to."""
        with self.not_empty:
            if not self.flags:
                self.not_empty.wait(timeout=timeout)

    def wipe_queue(self) -> None:
        with self.mutex:
            gone = [item[1] for item in self.queue]
            self.queue: list[Item] = []
            self.server.queue_updated()
        self._jobs.cancel(gone, shown=False)

    def delete_queue_item(self, function: Callable[[Item], bool]) -> bool:
        with self.mutex:
            found = next((item for item in self.queue if function(item)), None)
            if found is None:
                return False
            self._without(found[1])
            self.server.queue_updated()
        self._jobs.cancel([found[1]], shown=False)
        return True

    def interrupt_if_running(self, prompt_id: str) -> bool:
        if prompt_id not in self.running():
            return False
        self._jobs.cancel([prompt_id], shown=True)
        return True

    # --- as jobs change --------------------------------------------------------------------------

    def running(self) -> list[str]:
        with self.mutex:
            return [item[1] for item in self.currently_running.values()]

    def show(self, item: Item) -> None:
        """As pending."""
        with self.mutex:
            self.queue.append(item)
            self.queue.sort(key=lambda entry: entry[0])
            self.server.queue_updated()

    def begin(self, job: str) -> bool:
        """Pending → running. False when it is not pending."""
        with self.mutex:
            item = next((item for item in self.queue if item[1] == job), None)
            if item is None:
                return False
            self._without(job)
            self.currently_running[self.task_counter] = copy.deepcopy(item)
            self.task_counter += 1
            self.server.queue_updated()
            return True

    def back(self, job: str) -> None:
        """Running → pending: its worker has handed it back."""
        with self.mutex:
            for number, item in list(self.currently_running.items()):
                if item[1] == job:
                    del self.currently_running[number]
                    self.show(item)

    def drop(self, job: str) -> None:
        """It was never queued."""
        with self.mutex:
            self._without(job)
            for number, item in list(self.currently_running.items()):
                if item[1] == job:
                    del self.currently_running[number]
            self.server.queue_updated()

    def shows(self, job: str) -> bool:
        with self.mutex:
            return job in self.running() or any(item[1] == job for item in self.queue)

    def end(self, job: str, result: dict[str, Any], status: str, messages: list[tuple[str, Any]]) -> None:
        """Running or pending → history."""
        with self.mutex:
            self.begin(job)
            number = next((n for n, item in self.currently_running.items() if item[1] == job), None)
            if number is None:
                return
            said = execution.PromptQueue.ExecutionStatus(
                status_str=status, completed=status == "success", messages=messages
            )
            super().task_done(number, result, said, process_item=lambda item: item[:5])

    def _without(self, job: str) -> None:
        self.queue = [item for item in self.queue if item[1] != job]
