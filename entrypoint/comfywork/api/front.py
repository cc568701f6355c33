"""What the handlers work with: the queue under a token's limits, the files, and whoever listens to events."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from comfywork.api.guard import grant_of
from comfywork.api.problems import ForbiddenError
from comfywork.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfywork.api.events import Hub
    from comfywork.names import Priority
    from comfywork.settings import Settings
    from comfywork.storage import Storage
    from comfywork.views import JobView, WorkerView

from comfywork.api.tokens import Grant, Tokens

_log = logging.getLogger("uvicorn.error")


class Front:
    def __init__(self, broker: Broker, tokens: Tokens, open_storage: Callable[[], Storage], hub: Hub) -> None:
        self.broker, self.tokens, self.hub = broker, tokens, hub
        self._open = open_storage
        self._found: Storage | None = None
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}

    def say(self, what: str, trouble: str) -> None:
        """Into the log, when it changes."""
        if self._said.get(what, "") == trouble:
            return
        self._said[what] = trouble
        if trouble:
            _log.warning("%s: %s", what, trouble)
        else:
            _log.info("%s: ok again", what)

    @property
    def settings(self) -> Settings:
        return self.broker.settings

    @property
    def storage(self) -> Storage:
        """Opened when it is first wanted: a storage that is down at start is no reason not to start."""
        with self._lock:
            if self._found is None:
                self._found = self._open()
            return self._found

    def check_storage(self) -> None:
        self.storage.check()

    def limits(self, grant: Grant) -> Settings:
        return replace(
            self.settings,
            rate=self.settings.rate if grant.rate is None else grant.rate,
            depth=self.settings.depth if grant.depth is None else grant.depth,
        )

    def broker_for(self, grant: Grant) -> Broker:
        return Broker(self.broker.connection, self.limits(grant))


class Caller:
    """Whoever asks, and what they may see."""

    def __init__(self, front: Front, grant: Grant) -> None:
        self.front, self.grant = front, grant
        self.broker = front.broker_for(grant)

    @property
    def scope(self) -> str | None:
        """The tenant whose jobs there are for this caller; None for all."""
        return None if self.grant.admin else self.grant.tenant

    def tenant(self, asked: str | None) -> str:
        """For whom; ForbiddenError unless it is the caller's own."""
        if asked is None or asked == self.grant.tenant or self.grant.admin:
            return asked or self.grant.tenant
        raise ForbiddenError(f"this token is {self.grant.tenant}'s, not {asked}'s", hint="leave tenant out")

    def check_priority(self, priority: Priority) -> None:
        if not self.grant.allows(priority):
            raise ForbiddenError(
                f"{self.grant.tenant} may ask for {self.grant.ceiling} at most, not for {priority}"
            )

    def job(self, view: JobView) -> dict[str, Any]:
        found = view.as_dict()
        found["outputs"] = [
            {**entry, "file": output.file, "url": f"/v1/jobs/{view.id}/outputs/{output.file}"}
            for entry, output in zip(found["outputs"], view.outputs, strict=True)
        ]
        return found

    def worker(self, view: WorkerView) -> dict[str, Any]:
        found = view.as_dict()
        if not self.grant.admin:
            found.update(host="", job="", loaded=(), image="")
        return found


_bearer = HTTPBearer(auto_error=False, description="A tenant's token, from `comfyrun api token TENANT`.")


def front_of(request: Request) -> Front:
    found: Front = request.app.state.front
    return found


def _caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    # The guard has looked at the token already; HTTPBearer stands here for the OpenAPI description.
    return Caller(front_of(request), grant_of(request.scope))


AnyCaller = Annotated[Caller, Depends(_caller)]
AnyFront = Annotated[Front, Depends(front_of)]
