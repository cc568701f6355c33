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
            raise MachineError(_elsewhere(address)) from error
        for family, kind, protocol, _, place in found:
            try:
                _bind(family, kind, protocol, place)
            except OSError as error:
                raise MachineError(_explain(error, address, port)) from None


def _bind(family: int, kind: int, protocol: int, place: object) -> None:
    with socket.socket(family, kind, protocol) as server:
        # As the server itself does it: a port in TIME_WAIT is free.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(place)  # type: ignore[arg-type]  # as getaddrinfo gave it


def _explain(error: OSError, address: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {port} on {address} is in use by another server in this network namespace: stop that "
                "one, or choose another port with COMFY_PORT "
                f"(with --network host, `ss -ltnp 'sport = :{port}'` names it)"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"UID {os.getuid()} may not use port {port}: choose one from 1024 up with COMFY_PORT and "
                "publish it as you like (-p 127.0.0.1:80:8188)"
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return _elsewhere(address)
        case _:
            return f"port {port} on {address} cannot be used: {error}"


def _elsewhere(address: str) -> str:
    return (
        f"--listen {address}: this container has no such address. 0.0.0.0 listens on all that it has; who reaches it "
        "is decided by what is published (-p 127.0.0.1:8188:8188)"
    )
