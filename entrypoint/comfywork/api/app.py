"""The HTTP API and the page as one ASGI application."""

from __future__ import annotations

import importlib.resources
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from comfywork import __version__
from comfywork.api import fronts, inputs, jobs, looks, models, operations, outputs, problems
from comfywork.api.front import Front
from comfywork.api.guard import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_SLACK = 64_000  # bytes of a submission beside its workflow
_SMALL = 64_000
_PAGE = importlib.resources.files("comfywork.api") / "page"
_DESCRIPTION = """Jobs for ComfyUI. Every call but `/health` and `/ready` wants `Authorization: Bearer TOKEN`.
Errors are `application/problem+json` (RFC 9457) with a `hint`: the next step."""


def create_app(front: Front, *, metrics_token: str | None, max_input: int) -> FastAPI:
    """`max_input` in bytes, of one upload."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.uploads = anyio.CapacityLimiter(inputs.AT_ONCE)
        front.hub.start()
        try:
            yield
        finally:
            front.hub.stop()

    app = FastAPI(
        title="comfywork",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.front = front
    problems.install(app, front.settings)
    for part in (jobs, outputs, inputs, looks, operations, fronts):
        app.include_router(part.router)
    _pages(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(
        Guard, tokens=front.tokens, limit=_limit(front, max_input), metrics_token=metrics_token
    )
    return app


def _limit(front: Front, max_input: int) -> Callable[[str], int]:
    def limit(path: str) -> int:
        if path == "/v1/jobs":
            return front.settings.max_workflow + _SLACK
        return max_input if path == "/v1/inputs" else _SMALL

    return limit


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        found["components"]["schemas"]["Problem"] = models.Problem.model_json_schema()
        app.openapi_schema = found
    return app.openapi_schema


def _pages(app: FastAPI) -> None:
    """The queue's page, and the API's: nothing of them comes from elsewhere."""

    def page(name: str, csp: str | None = None) -> Callable[[], Response]:
        def answer() -> Response:
            headers = {"Cache-Control": "no-cache"}
            if csp:
                headers["Content-Security-Policy"] = csp
            return FileResponse(str(_PAGE / name), headers=headers)

        return answer

    app.add_api_route("/", page("index.html"), include_in_schema=False)
    app.add_api_route("/docs", page("docs.html", _SWAGGER_CSP), include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: RedirectResponse("/page/icon.svg"), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=str(_PAGE)))
    swagger = importlib.resources.files("fastapi_swagger") / "resources"
    app.mount("/swagger", StaticFiles(directory=str(swagger)))


# Swagger UI sets styles at its elements, and has its pictures in its style sheet.
_SWAGGER_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
