"""Errors as application/problem+json (RFC 9457), with the next step as `hint`."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import redis
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from comfywork.errors import (
    ComfyworkError,
    ConfigError,
    ConflictError,
    LimitError,
    QueueError,
    RefusedError,
    UnknownJobError,
)
from comfywork.link import said
from comfywork.storage import MissingError, StorageError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

    from comfywork.settings import Settings

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_SHOWN = 10  # mistakes of one request


class ForbiddenError(RefusedError):
    """The token is good, and does not allow this. (A plain RefusedError is the queue refusing this server.)"""


class Json(JSONResponse):
    """ASCII only: a text that ComfyUI took from a file's name need not be Unicode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(
    status: int, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if hint:
        body["hint"] = hint
    return Json(
        body,
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/problem+json",
    )


def of_error(error: ComfyworkError) -> JSONResponse:
    status, headers = HTTPStatus.INTERNAL_SERVER_ERROR, {}
    match error:
        case LimitError():
            status = HTTPStatus.TOO_MANY_REQUESTS
            headers = {"Retry-After": str(max(1, math.ceil(error.after)))}
        case TooLargeError():
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        case ConflictError():
            status = HTTPStatus.CONFLICT
        case UnknownJobError() | MissingError():
            status = HTTPStatus.NOT_FOUND
        case ForbiddenError():
            status = HTTPStatus.FORBIDDEN
        case ConfigError():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        case QueueError() | RefusedError() | StorageError():
            # Redis refusing this server's password is no mistake of whoever asks.
            status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}
    return problem(status, "\n".join(error.messages), error.hint, headers)


def install(app: FastAPI, settings: Settings) -> None:
    @app.exception_handler(ComfyworkError)
    def _ours(_: Request, error: ComfyworkError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(redis.RedisError)
    def _redis(_: Request, error: redis.RedisError) -> JSONResponse:
        return of_error(said(error, settings.redis))

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        mistakes = [f"{_place(mistake['loc'])}: {mistake['msg']}" for mistake in found[:_SHOWN]]
        if len(found) > _SHOWN:
            mistakes.append(f"and {len(found) - _SHOWN} more")
        return problem(422, "\n".join(mistakes), "GET /docs describes what is wanted")

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(app, request))
            return problem(405, f"{request.url.path} takes {allowed}", headers={"Allow": allowed})
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    def _defect(_: Request, error: Exception) -> JSONResponse:
        # The traceback is in the server's log.
        return problem(500, f"a defect of this server ({type(error).__name__})", "please report it")


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Of every route of this path, and not of the first alone."""
    scope = {name: request.scope[name] for name in ("type", "path", "root_path", "headers", "app")}
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]


def _place(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in parts)[:200]
