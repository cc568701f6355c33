"""The queue as a front sees it: its HTTP API with the tenant's token.

All that a front needs of a queue is here; nothing else of this package speaks HTTP to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from .settings import Settings

_ANSWER = aiohttp.ClientTimeout(total=30, connect=5)
_TRANSFER = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
_SILENCE = aiohttp.ClientTimeout(
    total=None, connect=5, sock_read=60
)  # the API says something every few seconds
ENDED = ("completed", "failed", "cancelled")
_PIECE = 1 << 20
_LINE = 1 << 20
_FAILING = 500
_REFUSED = 400


class PortError(Exception):
    """`hint` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UnreachableError(PortError):
    """The API, or the queue behind it, does not answer: the same call may succeed later."""


class RefusedError(PortError):
    """The API says no, and will say it again."""

    def __init__(self, message: str, hint: str = "", status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status

    @property
    def unknown(self) -> bool:
        return self.status == 404  # noqa: PLR2004

    @property
    def conflict(self) -> bool:
        return self.status == 409  # noqa: PLR2004

    @property
    def busy(self) -> bool:
        """A limit of the tenant's."""
        return self.status == 429  # noqa: PLR2004


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a job: what it is, what its ComfyUI has said since the last, and from where the next goes on."""

    job: Mapping[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    next: str = ""

    @property
    def state(self) -> str:
        return str(self.job.get("state", ""))


class Port:
    def __init__(self, settings: Settings) -> None:
        self.address = settings.api
        self._headers = {"Authorization": f"Bearer {settings.token}", "User-Agent": "queuefront/0.1"}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def me(self) -> str:
        """The tenant whose token it is."""
        return str((await self._json("GET", "me")).get("tenant", ""))

    async def models(self) -> dict[str, list[str]]:
        """Folder → the model files that workers have in it."""
        found = (await self._json("GET", "models")).get("folders")
        if not isinstance(found, dict):
            return {}
        return {str(folder): sorted(map(str, files)) for folder, files in found.items()}

    async def submit(
        self,
        job: str,
        workflow: Mapping[str, Any],
        priority: str,
        inputs: Mapping[str, str],
        extra: Mapping[str, Any],
    ) -> None:
        body = {"id": job, "workflow": workflow, "priority": priority, "inputs": inputs, "extra": extra}
        await self._json("POST", "jobs", json=body)

    async def look(self, job: str, after: str) -> Look:
        found = await self._json("GET", f"jobs/{quote(job, safe='')}/trail", params={"after": after or "0-0"})
        entries = [entry for entry in found.get("entries") or () if isinstance(entry, dict)]
        return Look(job=found.get("job") or {}, entries=entries, next=str(found.get("next") or after))

    async def cancel(self, job: str) -> None:
        await self._json("POST", f"jobs/{quote(job, safe='')}/cancel")

    async def put_input(self, name: str, path: Path) -> str:
        """Its key."""
        headers = {"Content-Type": "application/octet-stream"}
        with path.open("rb") as content:
            found = await self._json(
                "POST", "inputs", params={"name": name}, data=content, headers=headers, timeout=_TRANSFER
            )
        return str(found["key"])

    async def fetch(self, job: str, output: Mapping[str, Any], path: Path) -> None:
        """An output's bytes into a file. UnreachableError when others arrive than the queue has noted."""
        name = str(output["key"]).rpartition("/")[2]
        digest, size = hashlib.sha256(), 0
        where = f"{self.address}/v1/jobs/{quote(job, safe='')}/outputs/{quote(name, safe='')}"
        try:
            async with self._open().get(where, timeout=_TRANSFER) as answer:
                if answer.status >= _REFUSED:
                    raise await _refusal(answer)
                with path.open("wb") as file:
                    async for piece in answer.content.iter_chunked(_PIECE):
                        digest.update(piece)
                        size += len(piece)
                        await asyncio.to_thread(file.write, piece)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self._lost(error) from None
        if size != output["size"] or digest.hexdigest() != output["sha256"]:
            raise UnreachableError(
                f"{name}: {size} of {output['size']} bytes arrived, or others than were stored"
            )

    async def changes(self) -> AsyncIterator[str]:
        """The ids of this tenant's jobs, each time that something about them is new. Until the connection ends."""
        try:
            async with self._open().get(f"{self.address}/v1/events", timeout=_SILENCE) as answer:
                if answer.status >= _REFUSED:
                    raise await _refusal(answer)
                yield ""
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        yield _job_of(line[5:])
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise self._lost(error) from None

    # --- HTTP ------------------------------------------------------------------------------------

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=_ANSWER, trust_env=False, read_bufsize=_LINE
            )
        return self._session

    async def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            async with self._open().request(method, f"{self.address}/v1/{path}", **more) as answer:
                if answer.status >= _REFUSED:
                    raise await _refusal(answer)
                found = await answer.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self._lost(error) from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RefusedError(
                f"{self.address} answers, and is no API of a queue", "check the address: COMFYWORK_API", 0
            )
        return found

    def _lost(self, error: BaseException) -> UnreachableError:
        return UnreachableError(
            f"the queue at {self.address} cannot be reached ({str(error) or type(error).__name__})",
            "check that `comfyrun api` runs there",
        )


async def _refusal(answer: aiohttp.ClientResponse) -> PortError:
    """The API's own words."""
    try:
        problem = await answer.json(content_type=None)
        message, hint = problem["detail"], str(problem.get("hint") or "")
        message = message if isinstance(message, str) else json.dumps(message)[:1000]
    except (ValueError, KeyError, TypeError, AttributeError, aiohttp.ClientError):
        message, hint = f"{answer.url.path}: {answer.status} {answer.reason}", ""
    if answer.status >= _FAILING:
        return UnreachableError(message, hint)
    return RefusedError(message, hint, answer.status)


def _job_of(data: bytes) -> str:
    try:
        found = json.loads(data)
        return str(found.get("job") or found.get("id") or "")
    except (ValueError, AttributeError):
        return ""
