"""A server in a container of the image under test, and what was seen while it started."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfyclient import ComfyClient
from imagecontainers import Recipe, new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imagecontainers import Container, Engine


class NotServingError(Exception):
    """It ended, or did not answer in time; the message holds its log."""


@dataclass(kw_only=True)
class Running:
    container: Container
    client: ComfyClient
    seconds_to_alive: float
    seconds_to_ready: float
    healths: list[str] = field(default_factory=list)
    """What the engine said of its health, in order, while it started."""

    def log(self) -> str:
        return self.container.log()

    def run(self, *words: str, stdin: str | bytes | None = None, timeout: float = 120) -> tuple[int, str]:
        return self.container.run(*words, stdin=stdin, timeout=timeout)

    def server(self) -> int:
        """The process id of ComfyUI itself, in the container."""
        code, text = self.run("python", "-c", _FIND_SERVER)
        if code:
            raise NotServingError(text)
        return int(text)

    def memory(self) -> int:
        """Bytes that ComfyUI's process holds of its own (RSS without what it shares with files)."""
        status = self.container.read(f"/proc/{self.server()}/status")
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
        return int(kilobytes) * 1024

    def stop(self, signal: str) -> tuple[int, float]:
        """Its exit code on a signal, and the seconds it took."""
        begin = time.monotonic()
        self.container.kill(signal)
        code = self.container.wait(timeout=60)
        return code, time.monotonic() - begin


_FIND_SERVER = """
import os
for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    if any(w.endswith(b"/main.py") for w in words):
        print(pid)
        break
else:
    raise SystemExit("no process runs main.py")
"""


@contextmanager
def serving(
    engine: Engine,
    image: str,
    recipe: Recipe,
    *,
    mounts: tuple[str, ...] = (),
    timeout: float = 300,
    what: str = "server",
) -> Iterator[Running]:
    """A started server, ready for prompts; afterwards it is gone, with its anonymous volumes."""
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    name = new_name(what)
    container = engine.create(image, *recipe.words, name=name, options=(*recipe.as_options(), *volumes))
    try:
        yield started(container, timeout * engine.patience)
    finally:
        container.remove()


def started(container: Container, timeout: float) -> Running:
    """Start a container and wait until it takes prompts. NotServingError when it does not."""
    begin = time.monotonic()
    container.start()
    try:
        port = container.published()
    except RuntimeError as error:
        raise NotServingError(str(error)) from None
    client = ComfyClient(f"http://127.0.0.1:{port}", retries=0)
    healths: list[str] = []
    alive = _until(container, client.system_stats, begin, timeout, healths)
    ready = _until(
        container, lambda: client.get_json("/prompt")["exec_info"]["queue_remaining"], begin, timeout, healths
    )
    client = ComfyClient(client.base_url, timeout=30 * container.engine.patience)
    return Running(
        container=container, client=client, seconds_to_alive=alive, seconds_to_ready=ready, healths=healths
    )


def health(container: Container) -> str | None:
    """What the engine says of a container's health: starting, healthy, unhealthy; None without a check."""
    found = container.state().get("Health") or container.state().get("Healthcheck") or {}
    status = str(found.get("Status") or "")
    return status or None


def _until(
    container: Container, ask: Callable[[], Any], begin: float, timeout: float, healths: list[str]
) -> float:
    """Seconds since `begin` when `ask` first answers."""
    looked = 0.0
    while time.monotonic() - begin < timeout:
        try:
            ask()
        except (OSError, ValueError, KeyError):
            if time.monotonic() - looked > 1:  # an engine's answer costs more than a refused connection
                looked = time.monotonic()
                status = health(container)
                if status and status not in healths[-1:]:
                    healths.append(status)
                if container.ended():
                    state = container.state()
                    raise NotServingError(
                        f"the container ended with {state['ExitCode']}:\n{container.log()}"
                    ) from None
            time.sleep(0.1)
        else:
            return time.monotonic() - begin
    raise NotServingError(f"no answer in {timeout:g} s:\n{container.log()}")
