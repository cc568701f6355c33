"""What a front is told: by the environment, as `comfyrun front` sets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

PRIORITIES = ("high", "normal", "low")
DEFAULT_API = "http://127.0.0.1:8190"


class SettingsError(Exception):
    """Every mistake, one a line."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    api: str
    """Address of the queue's HTTP API, with no slash at its end."""
    token: str
    tenant: str
    """Whose token it has to be; empty when that was not said."""
    priority: str

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Settings:
        mistakes = []
        api = environ.get("COMFYWORK_API", "") or DEFAULT_API
        address = urlsplit(api)
        if address.scheme not in ("http", "https") or not address.hostname:
            mistakes.append(f"COMFYWORK_API: {api!r} is no address of an API, such as {DEFAULT_API}")
        try:
            token = _token(environ)
        except SettingsError as error:
            token = ""
            mistakes.append(str(error))
        priority = environ.get("COMFY_QUEUE_PRIORITY", "") or "normal"
        if priority not in PRIORITIES:
            mistakes.append(f"COMFY_QUEUE_PRIORITY: no priority {priority!r}: {', '.join(PRIORITIES)}")
        if mistakes:
            raise SettingsError("\n".join(mistakes))
        tenant = environ.get("COMFY_QUEUE_TENANT", "")
        return cls(api=api.rstrip("/"), token=token, tenant=tenant, priority=priority)


def _token(environ: Mapping[str, str]) -> str:
    token = environ.get("COMFYWORK_TOKEN", "")
    if file := environ.get("COMFYWORK_TOKEN_FILE"):
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(f"COMFYWORK_TOKEN_FILE: {file} cannot be read ({reason})") from None
    if not token:
        raise SettingsError(
            "COMFYWORK_TOKEN or COMFYWORK_TOKEN_FILE has to be the tenant's token; "
            "whoever runs the queue makes one: comfyrun api token TENANT"
        )
    if not token.isascii() or any(character.isspace() for character in token):
        raise SettingsError("COMFYWORK_TOKEN: a token is one word of ASCII")
    return token
