"""Turning the containerd image store on in dockerd's settings, keeping everything else in them."""

from __future__ import annotations

import json
from typing import Any

from imgbuild.doctor.store import OLD_DRIVERS
from imgbuild.errors import ConfigError

DAEMON_JSON = "/etc/docker/daemon.json"


def with_containerd_store(text: str | None) -> str:
    """The new text of daemon.json, equal to `text` when nothing has to change.

    ConfigError when the file is not what dockerd itself would accept.
    """
    settings = _parse(text)
    features = settings.get("features", {})
    if not isinstance(features, dict):
        raise ConfigError(
            f"{DAEMON_JSON}: `features` is not an object; the file was not touched",
            hint=f"edit {DAEMON_JSON}",
        )
    driver = settings.get("storage-driver")
    if driver in OLD_DRIVERS:
        raise ConfigError(
            f"{DAEMON_JSON} sets storage-driver to {driver!r}, which the containerd image store does not have; "
            "the file was not touched",
            hint=f"remove that line from {DAEMON_JSON}, then: imgbuild doctor --fix",
        )
    if text is not None and features.get("containerd-snapshotter") is True:
        return text
    settings["features"] = {**features, "containerd-snapshotter": True}
    return json.dumps(settings, indent=2) + "\n"


def _parse(text: str | None) -> dict[str, Any]:
    if text is None or not text.strip():
        return {}
    try:
        settings = json.loads(text)
    except ValueError as e:
        raise ConfigError(
            f"{DAEMON_JSON} is not valid JSON: {e}; the file was not touched",
            hint=f"mend {DAEMON_JSON} or move it away, then: imgbuild doctor --fix",
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{DAEMON_JSON} does not hold a JSON object; the file was not touched", hint=f"edit {DAEMON_JSON}"
        )
    return settings
