"""/v1/jobs/{id}/outputs: what a job made, out of the storage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from starlette.responses import StreamingResponse

from comfywork.api import models
from comfywork.api.front import AnyCaller
from comfywork.api.jobs import JobId, refusals
from comfywork.api.problems import problem
from comfywork.door import PIECE
from comfywork.errors import UnknownJobError
from comfywork.storage import disposition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfywork.storage import OpenedObject

router = APIRouter(prefix="/v1/jobs", tags=["files"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# An output is a stranger's: even opened by itself in a browser it may run nothing.
_SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class _Bytes(StreamingResponse):
    media_type = "application/octet-stream"


@router.get(
    "/{job_id}/outputs/{file}",
    response_class=_Bytes,
    responses={
        **refusals(404, 422),
        200: {
            "description": "The file.",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {
            "description": "The range that was asked for.",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The caller has it."},
        416: {
            "description": "The file has no such range.",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    },
)
def output(
    request: Request,
    caller: AnyCaller,
    job_id: JobId,
    file: Annotated[str, Path(pattern=models.FILE)],
    wanted: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
) -> Response:
    """An output's bytes; `file` is that of the job's outputs."""
    view = caller.broker.status(job_id, caller.scope)
    found = next((output for output in view.outputs if output.file == file), None)
    if found is None:
        raise UnknownJobError(f"{job_id} has no output {file}", hint="its outputs stand in GET /v1/jobs/{id}")
    headers = {
        "Content-Disposition": disposition(found.media_type, file),
        "Content-Security-Policy": _SANDBOX,
        "ETag": f'"{found.sha256}"',
        "Cache-Control": "private, max-age=86400, immutable",
        "Accept-Ranges": "bytes",
        "Vary": "Authorization",
    }
    if headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    part = None
    if wanted is not None and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
        part = _range(wanted, found.size)
        if part == (0, 0):
            return problem(
                416, f"{file} has {found.size} bytes", "", {"Content-Range": f"bytes */{found.size}"}
            )
    begin, end = part or (0, found.size)
    if part:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{found.size}"
    headers["Content-Length"] = str(end - begin)
    return _Bytes(
        _pieces(caller.front.storage.open(found.key), begin, end),
        status_code=206 if part else 200,
        headers=headers,
        media_type=found.media_type,
    )


def _range(wanted: str, size: int) -> tuple[int, int] | None:
    """From and to (exclusive); (0, 0) for what the file does not have, None for what is no range that we know."""
    found = _RANGE.fullmatch(wanted.strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < int(found[1]):
            return None
    return (begin, end) if begin < end else (0, 0)


def _pieces(opened: OpenedObject, begin: int, end: int) -> Iterator[bytes]:
    with opened:
        left = begin
        while left > 0 and (skipped := opened.read(min(PIECE, left))):
            left -= len(skipped)
        left = end - begin
        while left > 0 and (piece := opened.read(min(PIECE, left))):
            left -= len(piece)
            yield piece
