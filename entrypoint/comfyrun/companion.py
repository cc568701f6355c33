"""The second child of a worker: the agent, which takes jobs from the queue for the ComfyUI beside it.

It is started again whenever it ends, with growing pauses, while ComfyUI goes on with what it does: the next agent
asks ComfyUI for the job and carries on. What a restart cannot help (a wrong setting, a refused password) ends the
container after a few tries, with the agent's own exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from comfyrun.ends import described
from comfyrun.errors import MachineError
from comfyrun.logs import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfyrun.logs import Log

HOPELESS = (2, 77)
"""Exit codes that say that the next try will end alike: wrong configuration, refused."""
STUCK = 75
"""Its exit code when ComfyUI goes on with what it was told to end: both have to be started again."""
_TRIES = 3
_QUICK = 30.0  # seconds: who lived longer had been right with its settings once
_FIRST, _LONGEST = 1.0, 30.0  # seconds between a death and the next start
_HEALTHY = 60.0  # seconds of life after which the pauses begin anew
_CHUNK = 65536
_DRAIN = 1.0  # seconds for the rest of its log


@dataclass(frozen=True, kw_only=True)
class Companion:
    """How it is started, and how long it may take to end."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    drain: float
    """Seconds for the job that runs, after a signal; it is finished or handed back by then."""
    comfyui: float
    """Seconds for ComfyUI after that."""
    hand_back: float = 5.0
    """Seconds for handing its job back, when ComfyUI is gone."""
    name: str = "worker"
    """Before each of its lines, and as their source in JSON."""
    what: str = "the worker's agent"
    goes_on: str = "ComfyUI goes on"
    """While it is away."""
    hopeless: tuple[int, ...] = HOPELESS


class Keeper:
    """Keeps it running, in a thread of its own."""

    def __init__(self, companion: Companion, log: Log, gave_up: Callable[[], None]) -> None:
        self._companion, self._log, self._gave_up = companion, log, gave_up
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # of starting it and of asking it to end
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self.code: int | None = None
        """With which the container is to end, once it was given up."""

    def start(self) -> None:
        threading.Thread(target=self._keep, name="agent", daemon=True).start()

    def end(self) -> None:
        """Ask it to end; said again, it is told to hurry. It is not started any more."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.terminate()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended, after so many seconds at the latest."""
        return self._ended.wait(max(timeout, 0))

    def force(self) -> None:
        """It, and what it has started, ends now."""
        self.end()
        with self._lock:
            process = self._process
        if process is not None and not self.wait(0):
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            self.wait(_DRAIN + 1)

    def _keep(self) -> None:
        try:
            self._restart_for_ever()
        finally:
            self._ended.set()

    def _restart_for_ever(self) -> None:
        pause, hopeless = _FIRST, 0
        while True:
            begin = time.monotonic()
            code = self._run()
            lived = time.monotonic() - begin
            if code is None or self._stopping.is_set():
                return
            if code == STUCK:
                self._log.say(
                    f"{self._companion.what} cannot end what ComfyUI does: ending the container, to be started again",
                    "error",
                    exit_code=code,
                )
                self.code = code
                self._gave_up()
                return
            hopeless = hopeless + 1 if code in self._companion.hopeless and lived < _QUICK else 0
            if hopeless == _TRIES:
                self._log.say(
                    f"{self._companion.what} ended {_TRIES} times with exit code {code}, and only a change of "
                    "its settings can help: ending the container",
                    "error",
                    exit_code=code,
                )
                self.code = code
                self._gave_up()
                return
            pause = _FIRST if lived >= _HEALTHY else pause
            self._log.say(
                f"{self._companion.what} {described(code)} after {lived:.0f} s; {self._companion.goes_on}, and it "
                f"is started again in {pause:.0f} s",
                "warning",
                exit_code=code,
            )
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, _LONGEST)

    def _run(self) -> int | None:
        """Its exit code, as subprocess counts; None when it is not to be started any more."""
        with self._lock:
            if self._stopping.is_set():
                return None
            try:
                self._process = process = subprocess.Popen(
                    self._companion.argv,
                    env=dict(self._companion.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C in a terminal reaches comfyrun alone
                )
            except (OSError, ValueError) as error:
                self._log.say(f"{self._companion.argv[0]} cannot be started: {error}", "error")
                self.code = MachineError.exit_code
                self._gave_up()
                return None
        readers = [
            threading.Thread(target=self._relay, args=(pipe, stream), daemon=True)
            for pipe, stream in ((process.stdout, "stdout"), (process.stderr, "stderr"))
            if pipe is not None
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind would hold its log open
        for reader in readers:
            reader.join(_DRAIN)
        return code

    def _relay(self, pipe: IO[bytes], stream: str) -> None:
        lines = Lines(lambda text: self._log.relayed(self._companion.name, text, stream))
        with pipe:
            while data := pipe.read(_CHUNK):
                lines.feed(data)
        lines.end()
