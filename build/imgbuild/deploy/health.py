"""Waiting until a container takes prompts, or knowing why it never will."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgbuild.deploy.containers import Containers

_PAUSE = 0.5
_NO_PROGRAM = (126, 127)
_STAYS = 3
"""As many answers that the program is missing, since an exec into a container that starts may fail once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    ready: bool
    seconds: float
    why: str = ""
    """Of one that is not ready."""
    log: str = ""


def wait_ready(
    containers: Containers,
    name: str,
    *,
    timeout: float,
    tick: Callable[[float], None] | None = None,
    restarts: int = 0,
) -> Outcome:
    """Until `comfyrun health --ready` says so, the container has ended, or `timeout` seconds have gone by.

    `restarts`: how often the engine had restarted it before.
    """
    begun = time.monotonic()
    missing, said = 0, "it said nothing yet"
    while (gone := time.monotonic() - begun) < timeout:
        state = containers.container(name)
        if state is None:
            return Outcome(ready=False, seconds=gone, why="the container is gone")
        if (
            state.status in ("exited", "dead", "stopped")
            or state.restarts > restarts
            or state.status == "restarting"
        ):
            why = f"it ended with exit code {state.exit_code}"
            if state.restarts and state.exit_code == 0:  # Podman forgets it at a restart
                why = "it ends, and is started again and again"
            return Outcome(ready=False, seconds=gone, why=why, log=containers.log(name))
        if state.runs:
            asked = containers.execute(name, "comfyrun", "health", "--ready")
            if asked.returncode == 0:
                return Outcome(ready=True, seconds=time.monotonic() - begun)
            lines = (asked.stdout + asked.stderr).strip().splitlines()
            said = lines[-1] if lines else said
            missing = missing + 1 if asked.returncode in _NO_PROGRAM else 0
            if missing >= _STAYS:
                why = "there is no comfyrun in it: it is not one of our images"
                return Outcome(ready=False, seconds=gone, why=why, log=containers.log(name))
        if tick:
            tick(gone)
        time.sleep(_PAUSE)
    why = f"it did not take prompts within {timeout:g} s: {said}"
    return Outcome(ready=False, seconds=time.monotonic() - begun, why=why, log=containers.log(name))
