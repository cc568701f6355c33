"""Is ComfyUI alive, is it ready? Asks the server that really runs in this container.

Where it listens is read from its command line in /proc: no state file is needed, so it works with a
read-only root, under any UID, and also when COMFY_PORT was only set for the first process.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun.errors import ComfyrunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from comfyrun.layout import Layout

TIMEOUT = 5  # seconds, for all of it
_LIMIT = 1 << 20  # bytes; the answers have a few hundred


class UnhealthyError(ComfyrunError):
    """The server is not there, or answers wrongly."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Server:
    host: str
    port: int
    tls: bool


def check(layout: Layout, *, ready: bool, proc: Path = Path("/proc")) -> str:
    """One line on how it is. Raises UnhealthyError, after `TIMEOUT` seconds at the latest."""
    server = find(layout, proc)
    path = "/prompt" if ready else "/system_stats"

    def too_late(_signal: int, _frame: FrameType | None) -> None:
        raise UnhealthyError(f"GET {path} on port {server.port}: no answer in {TIMEOUT} s")

    # A socket's timeout starts again with each byte; this one does not.
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(TIMEOUT)
    try:
        answer = _get(server, path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if not ready:
        return f"alive on port {server.port}"
    match answer:
        case {"exec_info": {"queue_remaining": int(waiting)}}:
            return f"ready on port {server.port}, {waiting} in the queue"
        case _:
            raise UnhealthyError(
                f"GET {path} on port {server.port}: the answer has no exec_info.queue_remaining"
            )


def find(layout: Layout, proc: Path) -> Server:
    """The running server's address. Raises UnhealthyError when there is none."""
    for argv in _command_lines(proc):
        if str(layout.main) in argv[:4]:  # the interpreter, its options, and QEMU when emulated
            return parse(argv)
    raise UnhealthyError("ComfyUI is not running in this container")


def parse(argv: list[str]) -> Server:
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
    host = found["--listen"].split(",")[0]
    port = int(found["--port"]) if found["--port"].isdecimal() else 8188
    return Server(
        host={"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host),  # noqa: S104
        port=port,
        tls=bool(found["--tls-keyfile"]),
    )


def _command_lines(proc: Path) -> Iterator[list[str]]:
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
        yield raw.decode("utf-8", "surrogateescape").split("\0")


def _get(server: Server, path: str) -> object:
    import http.client  # noqa: PLC0415  (a quarter of the whole start)

    where = f"GET {path} on port {server.port}"
    connection: http.client.HTTPConnection
    if server.tls:
        import ssl  # noqa: PLC0415

        # It asks itself: there is nobody between to be kept out, and the name never matches 127.0.0.1.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        connection = http.client.HTTPSConnection(server.host, server.port, timeout=TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        with connection.getresponse() as response:
            body = response.read(_LIMIT)
    except TimeoutError:
        raise UnhealthyError(f"{where}: no answer in {TIMEOUT} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise UnhealthyError(f"{where}: {error}") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise UnhealthyError(f"{where}: answers {response.status}")
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        raise UnhealthyError(f"{where}: the answer is not JSON") from None
    return answer
