"""Tries the port before ComfyUI spends its seconds on starting up."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from comfyrun.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check(addresses: Sequence[str], port: int) -> None:
    """Raises MachineError when a server could not listen there."""
    for address in addresses:
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise MachineError(f"--listen {address}: no such address here ({error})") from None
        for family, kind, protocol, _, place in found:
            _try(family, kind, protocol, place, address, port)


def _try(family: int, kind: int, protocol: int, place: object, address: str, port: int) -> None:
    try:
        with socket.socket(family, kind, protocol) as server:
            # As the server itself does it: a port in TIME_WAIT is free.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind(place)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise MachineError(
                    f"port {port} on {address} is in use, by another server in this network namespace: "
                    f"stop that one, or choose another with COMFY_PORT (with --network host, ss -ltnp "
                    f"'sport = :{port}' names it)"
                ) from None
            case errno.EACCES | errno.EPERM:
                raise MachineError(
                    f"UID {os.getuid()} may not use port {port}: choose one from 1024 up with COMFY_PORT "
                    "and publish it as you like (-p 127.0.0.1:80:8188)"
                ) from None
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
                raise MachineError(f"--listen {address}: this container has no such address") from None
            case _:
                raise MachineError(f"port {port} on {address} cannot be used: {error}") from None
