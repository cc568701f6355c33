"""Is ComfyUI alive, is it ready, and is it on the device it was started for?

Asks the server that really runs in this container. Where it listens, and whether it was told to use the
CPU, is read from its command line in /proc: that also holds when COMFY_PORT was only set for the first process.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun import client, state
from comfyrun.client import NoAnswerError, Server
from comfyrun.errors import ComfyrunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from comfyrun.layout import Layout

TIMEOUT = 5  # seconds, for all of it
_SILENT = 60.0  # seconds, where nobody says otherwise


class UnhealthyError(ComfyrunError):
    """The server is not there, or answers wrongly."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Process:
    pid: int
    parent: int
    argv: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Health:
    port: int
    device: str
    device_name: str
    queue: int | None
    """Jobs that wait or run; None where nobody asked."""
    fallbacks: Mapping[str, int] | None
    """Calls that PyTorch's attention did in another's place; None where that is not known."""
    worker: str | None = None
    """What the agent of a worker does; None where there is none."""

    @property
    def text(self) -> str:
        how = "alive" if self.queue is None else "ready"
        parts = [f"{how} on port {self.port}", f"runs on {self.device or 'an unknown device'}"]
        if self.queue is not None:
            parts.append(f"{self.queue} in the queue")
        if self.worker:
            parts.append(f"worker {self.worker}")
        if self.fallbacks:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self.fallbacks.items()))
            parts.append(f"attention fell back to PyTorch's: {counts}")
        return "; ".join(parts)

    def as_json(self) -> str:
        return json.dumps(
            {
                "schema": 1,
                "healthy": True,
                "ready": None if self.queue is None else True,
                "port": self.port,
                "device": self.device or None,
                "device_name": self.device_name or None,
                "queue": self.queue,
                "attention_fallbacks": None if self.fallbacks is None else dict(self.fallbacks),
                **({} if self.worker is None else {"worker": self.worker}),
            }
        )


def unhealthy_as_json(error: ComfyrunError) -> str:
    return json.dumps({"schema": 1, "healthy": False, "reason": "; ".join(error.messages)})


def check(layout: Layout, *, ready: bool, proc: Path = Path("/proc"), count: int = 1) -> Health:
    """Of all servers here, of which there should be `count`. Raises UnhealthyError."""
    found = find(layout, proc)
    if len(found) < count:
        raise UnhealthyError(f"{len(found)} of {count} ComfyUIs run in this container")
    every = [_check(process, layout, ready=ready, proc=proc) for process in found]
    if len(every) == 1:
        return every[0]
    return replace(
        every[0],
        worker=", ".join(h.worker for h in every if h.worker) or None,
        queue=None if every[0].queue is None else sum(h.queue or 0 for h in every),
    )


def _check(process: Process, layout: Layout, *, ready: bool, proc: Path) -> Health:
    """After `TIMEOUT` seconds at the latest."""
    told = state.read(proc, process.parent) or {}
    for key, words in (("broken", "can do no more jobs"), ("stopping", "is being stopped")):
        if told.get(key) and (ready or key == "broken"):
            raise UnhealthyError(f"ComfyUI {words}: {told[key]}")
    server = parse(process.argv)
    deadline = time.monotonic() + TIMEOUT
    try:
        kind, name = _device(client.get(server, "/system_stats", deadline), server)
        queue = _queue(client.get(server, "/prompt", deadline), server) if ready else None
    except NoAnswerError as error:
        raise UnhealthyError(str(error)) from None
    wanted = wanted_device(process.argv, layout)
    if wanted and kind != wanted:
        raise UnhealthyError(
            f"ComfyUI runs on {kind or 'an unknown device'}, and was started to run on {wanted}"
        )
    fallbacks = told.get("attention_fallbacks")
    agent = told.get("worker")
    return Health(
        worker=_agent(agent) if isinstance(agent, dict) else None,
        port=server.port,
        device=kind,
        device_name=name,
        queue=queue,
        fallbacks=fallbacks if isinstance(fallbacks, dict) else None,
    )


def _agent(told: Mapping[str, object]) -> str:
    """What the agent says that it does. Raises UnhealthyError when it has said nothing for too long."""
    path, timeout = Path(str(told.get("state"))), told.get("timeout")
    limit = float(timeout) if isinstance(timeout, (int, float)) else _SILENT
    try:
        age = time.time() - path.stat().st_mtime
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise UnhealthyError("the worker's agent has said nothing yet: ComfyUI is alone") from None
    if age > limit:
        raise UnhealthyError(
            f"the worker's agent has said nothing for {age:.0f} s (WORKER_HEARTBEAT_TIMEOUT is {limit:g} s)"
        )
    state, job = (said.get("state"), said.get("job")) if isinstance(said, dict) else (None, None)
    return f"{state or 'runs'}{f' with {job}' if job else ''}"


def find(layout: Layout, proc: Path) -> list[Process]:
    """The running servers. Raises UnhealthyError when there is none."""
    found = [
        Process(pid=int(process.name), parent=_parent(process), argv=tuple(argv))
        for process, argv in _command_lines(proc)
        if str(layout.main) in argv[:4]  # the interpreter, its options, and QEMU when emulated
    ]
    if not found:
        raise UnhealthyError("ComfyUI is not running in this container")
    # A node may start a Python of its own with the same words: only who has a comfyrun above it counts, if any has.
    ours = [process for process in found if state.read(proc, process.parent) is not None]
    return ours or found[:1]


def wanted_device(argv: tuple[str, ...], layout: Layout) -> str | None:
    """What torch calls the device that this command line asks for; None when that cannot be told."""
    if "--cpu" in argv:
        return "cpu"
    try:
        image = json.loads(layout.profile.read_bytes())
        return "cuda" if image["cuda"] else "cpu"
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def parse(argv: tuple[str, ...]) -> Server:
    """Where a ComfyUI with these arguments listens; the last of each flag counts, as in argparse."""
    found = {"--listen": "127.0.0.1", "--port": "8188", "--tls-keyfile": ""}
    for position, token in enumerate(argv):
        name, equals, joined = token.partition("=")
        if name not in found:
            continue
        following = argv[position + 1] if position + 1 < len(argv) else ""
        if equals:
            found[name] = joined
        elif following.startswith("-") or not following:
            found[name] = "0.0.0.0"  # noqa: S104  (--listen alone means every address)
        else:
            found[name] = following
    port = int(found["--port"]) if found["--port"].isdecimal() else 8188
    return client.local(found["--listen"].split(","), port, tls=bool(found["--tls-keyfile"]))


def _device(answer: object, server: Server) -> tuple[str, str]:
    """Its kind, as torch calls it, and its name. The first device is the one that ComfyUI uses."""
    match answer:
        case {"devices": [{"type": str(kind), **rest}, *_]}:
            name = rest.get("name")
            return kind, name if isinstance(name, str) else ""
        case {"devices": _}:
            return "", ""
        case _:
            raise NoAnswerError(f"GET /system_stats on port {server.port}: the answer names no devices")


def _queue(answer: object, server: Server) -> int:
    match answer:
        case {"exec_info": {"queue_remaining": int(waiting)}}:
            return waiting
        case _:
            raise NoAnswerError(
                f"GET /prompt on port {server.port}: the answer has no exec_info.queue_remaining"
            )


def _command_lines(proc: Path) -> Iterator[tuple[Path, list[str]]]:
    try:
        processes = sorted(
            (entry for entry in proc.iterdir() if entry.name.isdecimal()), key=lambda e: int(e.name)
        )
    except OSError as error:
        raise UnhealthyError(f"{proc} cannot be read: {error.strerror}") from None
    for process in processes:
        try:
            raw = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile, or belongs to another user under hidepid
        yield process, raw.decode("utf-8", "surrogateescape").split("\0")


def _parent(process: Path) -> int:
    try:
        # `9 (any (name) at all) S 1 …`
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
