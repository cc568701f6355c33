"""Is a port of this machine free, and who has it if not?"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_LISTENS = "0A"
_NEAR = 100
_PRIVILEGED = 1024


def refuse_taken(address: str, port: int, holder: Callable[[int], str | None]) -> None:
    """ConfigError when nobody could be reached there; `holder` names the container that publishes a port."""
    why = problem(address, port)
    if why is None:
        return
    if why == errno.EADDRNOTAVAIL:
        raise ConfigError(
            f"--address {address}: this machine has no such address", hint="ip address lists them"
        )
    if why in (errno.EACCES, errno.EPERM):
        raise ConfigError(f"--port {port}: below {_PRIVILEGED} only root may listen", hint="--port 8188")
    who = holder(port)
    whose = f"the container {who}" if who else _process(port) or "another program"
    free = free_port(address, port)
    raise ConfigError(
        f"port {port} of {address} is taken by {whose}", hint=f"--port {free} is free" if free else None
    )


def problem(address: str, port: int) -> int | None:
    """The errno of an attempt to listen there; None when it is free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as engines do: TIME_WAIT is nobody
            one.bind((address, port))
            one.listen(1)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as e:
        return e.errno or errno.EADDRINUSE
    return None


def free_port(address: str, after: int) -> int | None:
    last = min(after + _NEAR, 65535)
    return next((p for p in range(after + 1, last + 1) if problem(address, p) is None), None)


def _process(port: int) -> str | None:
    """`name (pid N)` of who listens there, as far as this user may see it (Linux)."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listeners(Path("/proc/net") / table, port)}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listeners(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [r[9] for r in rows if r[3] == _LISTENS and int(r[1].rpartition(":")[2], 16) == port]
