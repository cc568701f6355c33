"""The role of a front: ComfyUI as its users know it, whose prompts become jobs of a queue.

`comfyrun front` is `comfyrun serve --cpu` with the settings that make /opt/nodes/queuefront active; they may be set as
variables instead, for `serve`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OPTIONS: Mapping[str, str] = {
    "--tenant": "COMFY_QUEUE_TENANT",
    "--api": "COMFYWORK_API",
    "--token-file": "COMFYWORK_TOKEN_FILE",
    "--priority": "COMFY_QUEUE_PRIORITY",
}
_PRIORITIES = ("high", "normal", "low")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

USAGE = """\
usage: comfyrun front --tenant NAME [--api URL] [--token-file FILE] [--priority high|normal|low] [ARGS ...]

ComfyUI without a GPU: Queue Prompt puts a job into the queue, and the result appears here. ARGS are those of serve.
  --tenant NAME      whose jobs they are; the token has to be this tenant's   (COMFY_QUEUE_TENANT)
  --api URL          the queue's HTTP API, http://127.0.0.1:8190 unless given (COMFYWORK_API)
  --token-file FILE  the tenant's token, from `comfyrun api token NAME`       (COMFYWORK_TOKEN_FILE, or COMFYWORK_TOKEN)
  --priority NAME    of its jobs, normal unless given                         (COMFY_QUEUE_PRIORITY)
"""


def read(
    arguments: Sequence[str], environ: Mapping[str, str], known: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment for `serve`; `known`: the environment with what stands in comfyrun.env.

    Raises ConfigError with every mistake.
    """
    ours, rest = _split(arguments)
    found = {**known, **ours}
    mistakes = []
    tenant = found.get("COMFY_QUEUE_TENANT", "")
    if not tenant:
        mistakes.append("comfyrun front needs a tenant: --tenant user001")
    elif not _TENANT.fullmatch(tenant):
        mistakes.append(
            f"{tenant!r} is no tenant: lower case letters, digits and inner hyphens, 63 at most, such as user001"
        )
    priority = found.get("COMFY_QUEUE_PRIORITY") or "normal"
    if priority not in _PRIORITIES:
        mistakes.append(f"no priority {priority!r}{nearest(priority, _PRIORITIES)}: {', '.join(_PRIORITIES)}")
    if not found.get("COMFYWORK_TOKEN") and not found.get("COMFYWORK_TOKEN_FILE"):
        mistakes.append(
            "comfyrun front needs the tenant's token: --token-file FILE, COMFYWORK_TOKEN_FILE or COMFYWORK_TOKEN; "
            "where the queue is, `comfyrun api token TENANT` makes one"
        )
    if mistakes:
        raise ConfigError(*mistakes)
    return (rest if "--cpu" in rest else ["--cpu", *rest]), {**environ, **ours, "COMFY_QUEUE_FRONT": "1"}


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our options as variables, and what is ComfyUI's."""
    ours: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _OPTIONS:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None or (not equals and given.startswith("--")):
            raise ConfigError(f"{name} needs a value: comfyrun front --help")
        ours[_OPTIONS[name]] = given
    return ours, rest
