"""What ComfyUI's log lines say about its health: attention that fell back, and a GPU context that is lost.

ComfyUI answers all the same in both cases, so its log is the only witness.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# How ComfyUI says, once for every call, that PyTorch's attention did another's work (0.3.75 to 0.33).
FALLBACKS = {
    "sage": "Error running sage attention: ",
    "sage3": "Error running SageAttention3: ",
    "flash": "Flash Attention failed, using default SDPA: ",
}

# After these CUDA answers every call of the process with the same error (CUDA's documentation calls them
# errors that leave the process in an inconsistent state: it has to be ended and started again).
_LOST = re.compile(
    r"(?:CUDA(?: driver)? error|Triton Error \[CUDA\]): (?:CUDA_ERROR_\w+: )?"
    r"(an illegal memory access was encountered|device-side assert triggered|unspecified launch failure"
    r"|misaligned address|an illegal instruction was encountered|invalid program counter"
    r"|operation not supported on global/shared address space|hardware stack error"
    r"|the launch timed out and was terminated|uncorrectable ECC error encountered|uncorrectable NVLink error)"
)
_FAILED = "!!! Exception during processing !!!"
_DONE = "Prompt executed in "  # also said of a job that failed
_STOPPED = "Stopped server"
_WORKER_DIED = re.compile(r"Exception in thread \S+ \(prompt_worker\)")

_KEPT = 40
_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b")


class Watch:
    """Fed with every line. Calls back, from the thread that feeds it."""

    def __init__(self, changed: Callable[[], None], fell_back: Callable[[str], None]) -> None:
        self.fallbacks: dict[str, int] = {}
        self.broken = ""
        """Why ComfyUI can do no more jobs, once that is certain."""
        self.stopped = False
        """It has closed its server in an orderly way; what follows is Python taking itself apart."""
        self._changed, self._fell_back = changed, fell_back
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()  # one thread for each of the two streams
        self._lost = ""
        self._failed = False
        self._next_job = False

    def line(self, text: str) -> None:
        with self._lock:
            if text.strip():
                self._last.append(text.rstrip())
            for name, words in FALLBACKS.items():
                if words in text:
                    self._count(name)
            if _STOPPED in text:
                self.stopped = True
            self._look_for_the_end(text)

    def last_words(self) -> str:
        """The exception that the log ends with, or its last line."""
        lines = list(self._last)
        raised = [x for x in lines if _RAISED.match(x)]
        return (raised or lines or [""])[-1][:500]

    def last_lines(self, count: int) -> list[str]:
        return list(self._last)[-count:]

    def _count(self, name: str) -> None:
        first = name not in self.fallbacks
        self.fallbacks[name] = self.fallbacks.get(name, 0) + 1
        self._changed()
        if first:
            self._fell_back(name)

    def _look_for_the_end(self, text: str) -> None:
        """One such error in a job is a suspicion; the next job's is the proof.

        A job that passes between the two clears it: the error was in a node's own process then.
        """
        lost = _LOST.search(text)
        if _FAILED in text:
            self._failed = True
        if lost and self._next_job:
            self._break(f"CUDA error: {lost[1]}, in one job after another")
        elif lost:
            self._lost, self._failed = lost[1], True
        elif _WORKER_DIED.search(text):
            # ComfyUI empties the GPU's cache after a job, outside of every try: a lost context ends its
            # only worker there, and whatever is queued from then on waits for ever.
            self._break(
                f"CUDA error: {self._lost}, and its worker has ended"
                if self._lost
                else "its worker has ended"
            )
        elif _DONE in text:
            if self._lost and not self._failed:
                self._lost = ""
            self._next_job = bool(self._lost)
            self._failed = False

    def _break(self, why: str) -> None:
        if not self.broken:
            self.broken = why
            self._changed()
