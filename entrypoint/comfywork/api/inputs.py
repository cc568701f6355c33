"""/v1/inputs: files that workflows read, straight from the request into the storage."""

from __future__ import annotations

import asyncio
import io
import mimetypes
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from comfywork.api import models
from comfywork.api.front import AnyCaller
from comfywork.api.jobs import refusals
from comfywork.api.problems import Json
from comfywork.errors import ConfigError, LimitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from _typeshed import WriteableBuffer

    from comfywork.api.front import Caller

router = APIRouter(prefix="/v1/inputs", tags=["files"])

_SILENCE = 30.0  # seconds within which the next bytes have to come
AT_ONCE = 16  # uploads; they do not take the threads of everything else
_TICK = 60


class _Name(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200, description="The file's name, with its extension.")
    tenant: models.Tenant | None = Field(None, description="For an admin's token: for whom.")


class _Body(io.RawIOBase):
    """A request's body as a file, for a thread to read."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream, self._left = stream, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._left:
            piece = anyio.from_thread.run(self._next)
            if piece is None:
                return 0
            self._left = piece
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    async def _next(self) -> bytes | None:
        try:
            return await asyncio.wait_for(anext(self._stream), _SILENCE)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise ConfigError(f"nothing came for {_SILENCE:g} s", hint="send it again") from None


@router.post(
    "",
    status_code=201,
    response_model=models.Input,
    responses=refusals(403, 413, 422, 429),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(request: Request, caller: AnyCaller, wanted: Annotated[_Name, Query()]) -> Json:
    """Keep a file for a submission's `inputs`. The same file again has the same key."""
    length = request.headers.get("Content-Length")
    if length == "0" or (length is None and "Transfer-Encoding" not in request.headers):
        raise ConfigError("the request has no body", hint="the file's bytes are the body")
    body = io.BufferedReader(_Body(request.stream()))

    def put() -> Json:
        tenant = caller.tenant(wanted.tenant)
        _check_rate(caller)
        stored = caller.front.storage.put_input(
            tenant,
            wanted.name,
            cast("BinaryIO", body),
            int(length) if length else None,
            mimetypes.guess_type(wanted.name)[0] or "application/octet-stream",
        )
        found = {
            "key": stored.key,
            "size": stored.size,
            "sha256": stored.sha256,
            "media_type": stored.media_type,
        }
        return Json(found, status_code=201)

    try:
        return await anyio.to_thread.run_sync(put, limiter=request.app.state.uploads)
    except ClientDisconnect:
        raise ConfigError("the upload ended early") from None


def _check_rate(caller: Caller) -> None:
    """As many uploads a minute as jobs."""
    rate = caller.broker.settings.rate
    if not rate:
        return
    connection = caller.broker.connection
    seconds, _ = connection.time()
    key = f"comfy:rate:{caller.grant.tenant}:inputs:{int(seconds // _TICK)}"
    with connection.pipeline() as pipe:
        pipe.incr(key)
        pipe.expire(key, 2 * _TICK)
        count = pipe.execute()[0]
    if count > rate:
        left = float(_TICK - seconds % _TICK)
        raise LimitError(
            f"{caller.grant.tenant} may send {rate:g} files a minute",
            hint=f"again in {left:.0f} s",
            after=left,
        )
