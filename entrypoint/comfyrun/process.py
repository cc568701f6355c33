"""ComfyUI as a child: its log passed on, its end asked for politely and then enforced, its exit code handed on.

comfyrun stays as its parent, under tini: a bound on the stop, a look at the log, a last word after a crash need
somebody who outlives it. That costs some 15 MB of memory and no restart: whoever runs containers restarts.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfyrun import client
from comfyrun.companion import Keeper
from comfyrun.ends import described, likely, oom_kills
from comfyrun.errors import BROKEN, MachineError
from comfyrun.logs import Relay
from comfyrun.state import State
from comfyrun.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from comfyrun.client import Server
    from comfyrun.companion import Companion
    from comfyrun.logs import Log

STOP_TIMEOUT = 8.0  # seconds; docker stop kills after 10

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# How far into the time of a stop each step begins.
_INTERRUPT_AT = 0.5  # a job that runs may finish until then
_ASK_AT = 0.75  # it has to have noticed the interrupt until then
_TERMINATE_AT = 0.9
_IMPATIENT = 1.0  # seconds, from SIGTERM to SIGKILL, after a second signal
_POLL = 0.1
_ANSWER = 1.0  # seconds for a request
_DRAIN = 2.0  # seconds for the rest of its log, when something that it started still holds that open

Event = signal.Signals | Literal["ended", "broken", "gave up"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How ComfyUI came to its end."""

    code: int
    """As subprocess counts: negative for a signal."""
    asked: bool
    """It was asked to end, and did so without being forced."""
    forced: bool


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    server: Server,
    log: Log,
    stop_timeout: float = STOP_TIMEOUT,
    companion: Companion | None = None,
    told: Mapping[str, object] | None = None,
) -> int:
    """The exit code of the container. Returns when ComfyUI has ended; raises MachineError if it cannot start.

    A `companion` is kept running beside it, and ends with it. `told` is what `comfyrun health` is told beside.
    """
    return _Supervisor(argv, environment, server, log, stop_timeout, companion, told or {}).run()


class _Supervisor:
    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        server: Server,
        log: Log,
        stop_timeout: float,
        companion: Companion | None,
        told: Mapping[str, object],
    ) -> None:
        self._argv, self._environment, self._server = list(argv), dict(environment), server
        self._log, self._stop_timeout = log, stop_timeout
        self._companion, self._told = companion, told
        self._keeper = Keeper(companion, log, lambda: self._events.put("gave up")) if companion else None
        self._process: subprocess.Popen[bytes] | None = None
        # Of all queues only this one may be filled from a signal handler.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._watch = Watch(self._changed, self._fell_back)
        self._state = State()
        self._stopping = ""
        self._polite = signal.SIGINT  # ComfyUI knows no other signal for an orderly end

    def run(self) -> int:
        begin, killed_before = time.monotonic(), oom_kills()
        with self._signals():
            self._process = process = self._start()
            relays = self._follow(process)
            if self._keeper is not None:
                self._keeper.start()
            ended = self._until_it_ends(process)
            self._let_the_companion_go()
            # What it left behind would hold the log open; the container ends with it in any case.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            for relay in relays:
                relay.finish(_DRAIN)
        self._state.close()
        return self._conclude(ended, time.monotonic() - begin, oom=oom_kills() > killed_before)

    # --- start ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {s: signal.signal(s, lambda n, _: self._events.put(signal.Signals(n))) for s in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            # A session of its own: Ctrl-C in a terminal reaches comfyrun alone, which knows the polite way.
            return subprocess.Popen(
                self._argv,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise MachineError(f"{self._argv[0]} cannot be started: {error}") from None

    def _follow(self, process: subprocess.Popen[bytes]) -> list[Relay]:
        self._changed()
        relays = [
            Relay(pipe, stream, self._log, self._watch.line)
            for pipe, stream in ((process.stdout, "stdout"), (process.stderr, "stderr"))
            if pipe is not None
        ]
        for relay in relays:
            relay.start()

        def wait() -> None:
            process.wait()
            self._events.put("ended")

        threading.Thread(target=wait, name="wait", daemon=True).start()
        return relays

    # --- while it runs -------------------------------------------------------------------------

    def _changed(self) -> None:
        self._state.write(
            {
                "schema": 1,
                "attention_fallbacks": self._watch.fallbacks,
                "broken": self._watch.broken,
                "stopping": self._stopping,
                **self._told,
            }
        )
        if self._watch.broken:
            self._events.put("broken")

    def _fell_back(self, name: str) -> None:
        self._log.say(
            f"{name} attention failed, and PyTorch's does its work, slower; this goes on for every such call. "
            "`comfyrun health` counts them; COMFY_ATTENTION=sdpa makes it the choice",
            "warning",
            attention=name,
        )

    def _until_it_ends(self, process: subprocess.Popen[bytes]) -> Ended:
        match self._events.get():
            case "ended":
                return Ended(code=process.returncode, asked=False, forced=False)
            case "broken":
                return self._give_up(process)
            case "gave up":
                return self._stop(process, None)
            case number:
                return self._stop(process, number)

    def _wait(self, until: float) -> Event | None:
        """What happens next; None when nothing does until then. That it ended is said again and again."""
        event: Event | None = None
        if not self._has_ended():
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(until - time.monotonic(), 0))
        return "ended" if self._has_ended() else event

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    # --- the end -------------------------------------------------------------------------------

    def _give_up(self, process: subprocess.Popen[bytes]) -> Ended:
        """Neither a job nor an orderly end is possible any more: soon and hard."""
        # The traceback whose first line gave it away is just being written.
        self._wait(time.monotonic() + 0.5)
        self._log.say(
            f"ComfyUI can do no more jobs ({self._watch.broken}), and would answer as if it could: ending it, "
            "so that the container can be started again",
            "error",
        )
        return self._force(process, time.monotonic() + _IMPATIENT, asked=False)

    def _stop(self, process: subprocess.Popen[bytes], number: signal.Signals | None) -> Ended:
        """`number`: the signal that asked for it; None when the agent was given up."""
        why = number.name if number else "no agent"
        self._stopping = f"since {why}"
        self._changed()
        timeout = self._companion.comfyui if self._companion else self._stop_timeout
        first = f"the job has {self._companion.drain:g} s, then " if self._companion and number else ""
        self._log.say(f"{why}: {first}stopping ComfyUI, {timeout:g} s at most", signal=why)
        impatient = self._drain(number) if number else None
        begin = time.monotonic()

        def at(share: float) -> float:
            return begin + share * timeout

        # What the agent leaves behind was handed back: nobody waits for it here.
        event = impatient or self._finish_jobs(at(0 if self._keeper else _INTERRUPT_AT), at(_ASK_AT))
        if event is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self._polite)
            event = self._wait_for_the_end(at(_TERMINATE_AT))
        if event == "ended":
            return Ended(code=process.returncode, asked=True, forced=False)
        limit = at(1) if event is None else time.monotonic() + _IMPATIENT
        return self._force(process, limit, asked=True)

    def _drain(self, number: signal.Signals) -> Event | None:
        """Waits for the agent, which finishes its job or hands it back. Returns what leaves no time for more."""
        if self._keeper is None or self._companion is None:
            return None
        self._keeper.end()
        limit = time.monotonic() + self._companion.drain + _IMPATIENT
        while not self._keeper.wait(_POLL):
            now = time.monotonic()
            event = self._wait(min(now + _POLL, limit))
            if event in STOP_SIGNALS:
                self._log.say(f"{number.name} again: the job is handed back at once", "warning")
                self._keeper.end()
                self._keeper.wait(_IMPATIENT)
                self._keeper.force()
                return event
            if event in ("ended", "broken") or now >= limit:
                break
        return "ended" if self._has_ended() else None

    def _let_the_companion_go(self) -> None:
        """ComfyUI is gone: its agent may still hand its job back."""
        if self._keeper is None or self._companion is None or self._keeper.wait(0):
            return
        self._keeper.end()
        if not self._keeper.wait(self._companion.hand_back):
            self._log.say(
                "the worker's agent does not end: killing it; its job is handed back by another worker, "
                "WORKER_HEARTBEAT_TIMEOUT from now",
                "warning",
            )
            self._keeper.force()

    def _finish_jobs(self, interrupt_at: float, ask_at: float) -> Event | None:
        """Lets the running job finish, or interrupts it; what waits is dropped, as it would be anyway.

        Returns an event that leaves no time for that, or None.
        """
        said = ""
        while True:
            now = time.monotonic()
            try:
                left = self._jobs(now)
                if left and now >= ask_at:
                    return None
                if left and now >= interrupt_at and said != "interrupt":
                    said = "interrupt"
                    self._log.say("the running job takes too long for this stop: interrupting it", "warning")
                    client.post(self._server, "/interrupt", {}, now + _ANSWER)
                elif left and not said:
                    said = "wait"
                    self._log.say(
                        f"a job is running: it has {interrupt_at - now:.1f} s to finish; "
                        f"{left - 1} more in the queue will not be done"
                    )
            except client.RefusedError:
                # It does not serve yet, so there is nothing to lose; SIGINT would leave a traceback.
                self._polite = signal.SIGTERM
                return None
            except client.NoAnswerError:
                return None
            if not left:
                return None
            event = self._wait(min(now + _POLL, ask_at))
            if event in ("ended", *STOP_SIGNALS):
                return event

    def _jobs(self, now: float) -> int:
        """How many there are, after dropping those that wait."""
        found = client.get(self._server, "/prompt", now + _ANSWER)
        match found:
            case {"exec_info": {"queue_remaining": int(left)}}:
                if left > 1:
                    client.post(self._server, "/queue", {"clear": True}, now + 2 * _ANSWER)
                return left
            case _:
                return 0

    def _wait_for_the_end(self, until: float) -> Event | None:
        """`ended`, an impatient second signal, or None when the time is over."""
        while True:
            event = self._wait(until)
            if event not in ("broken", "gave up"):
                return event

    def _force(self, process: subprocess.Popen[bytes], limit: float, *, asked: bool) -> Ended:
        process.terminate()
        if self._wait_for_the_end(limit) != "ended":
            self._log.say("ComfyUI does not end: killing it", "warning")
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Ended(code=process.returncode, asked=asked, forced=True)

    def _conclude(self, ended: Ended, seconds: float, *, oom: bool) -> int:
        code = ended.code if ended.code >= 0 else 128 - ended.code
        if self._watch.fallbacks:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self._watch.fallbacks.items()))
            self._log.say(
                f"attention fell back to PyTorch's this often: {counts}",
                "warning",
                attention_fallbacks=self._watch.fallbacks,
            )
        if self._watch.broken:
            return BROKEN
        if ended.asked:
            code = self._after_a_stop(ended, code, seconds)
            given_up = self._keeper.code if self._keeper else None
            return code if given_up is None else given_up
        message = f"ComfyUI {described(ended.code)} after {seconds:.0f} s, and nobody had asked it to"
        if ended.code:
            words = self._watch.last_words()
            message += f"; its last words: {words}" if words else ""
        level: Literal["info", "error"] = "error" if ended.code else "info"
        details = {"exit_code": code, "seconds": round(seconds, 1), "last_lines": self._watch.last_lines(10)}
        self._log.say(message, level, **details)
        cause = likely(ended.code, oom=oom)
        if cause:
            self._log.say(cause, "error")
        return code

    def _after_a_stop(self, ended: Ended, code: int, seconds: float) -> int:
        # With a job in it, Python may abort or take its time on the way out; there is nothing more to lose then.
        in_order = not ended.forced and ended.code in (0, -self._polite, -signal.SIGINT)
        if in_order:
            words = "ended"
        elif self._watch.stopped:
            words = f"had stopped, and what was left of it {described(ended.code)}"
        else:
            words = f"{'had to be forced: it ' if ended.forced else ''}{described(ended.code)}"
        clean = in_order or self._watch.stopped
        self._log.say(f"ComfyUI {words}", "info" if clean else "warning", seconds=round(seconds, 1))
        return 0 if clean else code
