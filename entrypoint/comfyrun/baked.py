"""JSON files that were baked into the image, read with one kind of error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from comfyrun.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, schema: int) -> dict[str, object]:
    """The object in `path`, which must say that it is of this `schema`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: it is written when the image is built, so this image is incomplete. "
            "Build it with imgbuild, or check what is mounted over /etc/comfyrun"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    found = value.get("schema")
    if isinstance(found, bool) or not isinstance(found, int):
        raise ConfigError(f"{path} has no schema number")
    if found != schema:
        age = "newer" if found > schema else "older"
        raise ConfigError(
            f"{path} has schema {found}, this comfyrun reads schema {schema}: the file is {age} than the "
            "entrypoint. Build the image again, so that both come from one version of imgbuild"
        )
    return value
