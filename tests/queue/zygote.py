"""Processes by fork of one that has imported everything: an agent or a stand-in starts in milliseconds.

One JSON line in, one out: {"run": "agent"|"comfy", "arguments", "environ", "log"} → pid; {"poll": pid} → exit code or null.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Child:
    """What subprocess.Popen is to a program."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid, self.returncode = zygote, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 20.0) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("child", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    def __init__(self, entrypoint: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(entrypoint)},
        )

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, what: str, arguments: list[str], environ: dict[str, str], log: Path) -> Child:
        return Child(self, self.ask(run=what, arguments=arguments, environ=environ, log=str(log)))

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def child(question: dict[str, Any]) -> None:
    import agentproc
    import fakecomfy

    os.setsid()
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((null, log, log)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(question["environ"])
    if question["run"] == "agent":
        agentproc.main()
    else:
        fakecomfy.main(*question["arguments"])


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import agentproc  # noqa: F401
    import fakecomfy  # noqa: F401

    import comfywork.agent
    import comfywork.storage.volume  # noqa: F401

    ended: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid = question["poll"]
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer: Any = ended.get(pid)
        elif not (answer := os.fork()):
            code = 1
            try:
                child(question)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:  # noqa: BLE001
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
