"""The COMFY_ variables. Each is a field here; its variable is COMFY_ and the field's name."""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "COMFY_"

# Libraries that ComfyUI loads read these; they are theirs to check.
FOREIGN = ("COMFY_KITCHEN_", "COMFY_AIMDO_")

# What Kubernetes sets in every pod for a Service whose name begins with `comfy`.
_SERVICE = re.compile(r"_SERVICE_|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Settings:
    profile: str = "default"
    data: str = "/data"
    cache: str = "/cache"
    port: str = "8188"
    listen: str = "0.0.0.0"  # noqa: S104  (inside a container; what is published decides who reaches it)
    args: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def origin(self, name: str) -> str:
        return variable(name) if name in self.given else "default"


def variable(name: str) -> str:
    return PREFIX + name.upper()


def check_port(text: str) -> str:
    """`text`, which must be a port a server can be reached at. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise ValueError(f"{text!r} is not a port: a whole number from 1 to {MAX_PORT}")
    return str(int(text))


def check_listen(text: str) -> str:
    """`text`, which must be addresses or host names with commas between. Raises ValueError."""
    for address in text.split(","):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            # Digits and dots only is an address gone wrong, not a host's name.
            if not _HOST_NAME.fullmatch(address) or re.fullmatch(r"[0-9.]+", address):
                raise ValueError(f"{address!r} is neither an IP address nor a host name") from None
    return text


def check_directory(text: str) -> str:
    """`text`, which must be an absolute path below the root. Raises ValueError."""
    if not text.startswith("/") or text.strip("/.") == "" or ".." in text.split("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    if "\0" in text or "\n" in text:
        raise ValueError(f"{text!r} holds a character that no path can have here")
    return text.rstrip("/")


def _check_text(text: str) -> str:
    return text


_CHECKS: Mapping[str, Callable[[str], str]] = {
    "profile": _check_text,
    "data": check_directory,
    "cache": check_directory,
    "port": check_port,
    "listen": check_listen,
}
NAMES = frozenset(variable(f.name) for f in fields(Settings) if f.name not in ("given", "notes"))


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in `environ`. An empty variable counts as unset (compose's `${X:-}` makes those)."""
    mistakes: list[str] = []
    ignored: list[str] = []
    values: dict[str, str] = {}
    arguments: tuple[str, ...] = ()
    given: set[str] = set()
    for key, text in sorted(environ.items()):
        if not key.startswith(PREFIX) or key.startswith(FOREIGN):
            continue
        if _of_kubernetes(key, text):
            ignored.append(key)
            continue
        if key not in NAMES:
            mistakes.append(f"{key}: comfyrun knows no such variable{nearest(key, NAMES)}")
            continue
        if not text:
            continue
        name = key.removeprefix(PREFIX).lower()
        try:
            if name == "args":
                arguments = tuple(shlex.split(text))
            else:
                values[name] = _CHECKS[name](text)
        except ValueError as error:
            # The arguments themselves are not shown: a URL in them may hold a password.
            mistakes.append(f"{key} cannot be split: {error}" if name == "args" else f"{key}: {error}")
        given.add(name)
    if mistakes:
        raise ConfigError(*mistakes)
    note = (
        f"ignored, since Kubernetes sets them for a Service of that name: {', '.join(ignored)} "
        "(enableServiceLinks: false in the pod leaves them out)"
    )
    notes = (note,) if ignored else ()
    return Settings(args=arguments, given=frozenset(given), notes=notes, **values)


def _of_kubernetes(key: str, value: str) -> bool:
    # COMFY_PORT itself is such a variable when the Service is called `comfy`.
    return bool(_SERVICE.search(key)) or ("_PORT" in key and bool(_SERVICE_URL.match(value)))
