"""Whether ComfyUI, which has no password, would listen on the machine's own network."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Finding, ok, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfyrun.preflight.system import System

CHECK = "network"
INTERFACES = "/sys/class/net"


def check(system: System, listen: Sequence[str]) -> Finding:
    if not host_network(system):
        return ok(CHECK, "a network of the container's own")
    exposed = [address for address in listen if not _loopback(address)]
    if not exposed:
        return ok(CHECK, f"the machine's own network, and it listens on {', '.join(listen)} only")
    return warning(
        CHECK,
        f"this is the machine's own network (--network host), and it listens on {', '.join(exposed)}: whoever "
        "reaches it runs code on this machine, for ComfyUI has no password",
        "COMFY_LISTEN=127.0.0.1, or a network of its own with --publish 127.0.0.1:8188:8188",
    )


def host_network(system: System) -> bool:
    """Hardware and bridges are seen in the machine's network only; a container's own has one end of a pair."""
    for name in system.names(INTERFACES):
        folder = f"{INTERFACES}/{name}"
        if name != "lo" and (system.exists(f"{folder}/device") or system.exists(f"{folder}/bridge")):
            return True
    return False


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
