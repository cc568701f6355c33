"""The end of a prompt: its files here, its last events, its place in the history."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from .port import RefusedError, UnreachableError
from .replay import Replay
from .said import failed, lost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .outputs import Shelf
    from .port import Port
    from .queue import RemoteQueue
    from .records import Record

LOG = logging.getLogger("queuefront")

_PAUSES = (0.5, 5.0)  # seconds between two tries to fetch: first, longest


class Delivery:
    def __init__(self, server: Any, queue: RemoteQueue, port: Port, shelf: Shelf) -> None:
        self._server, self._queue, self._port, self._shelf = server, queue, port, shelf

    def replay(self, record: Record) -> Replay:
        def at(client: str | None) -> None:
            # What ComfyUI tells a browser that connects again.
            self._server.client_id = client
            self._server.last_node_id = replay.node if client is not None else None

        replay = Replay(record.id, record.client, self._server.send_sync, at)
        return replay

    async def completed(self, record: Record, replay: Replay, job: Mapping[str, Any]) -> None:
        pause = _PAUSES[0]
        while True:
            try:
                outputs = await self._shelf.collect(self._port, record, job, replay.history)
                break
            except UnreachableError as error:
                LOG.warning("%s; the outputs of %s are fetched as soon as it answers", error, record.id)
                await asyncio.sleep(pause)
                pause = min(_PAUSES[1], 2 * pause)
            except (OSError, RefusedError) as error:
                reason = getattr(error, "strerror", None) or error
                said = lost(f"its outputs are in the queue's storage, and cannot be put here: {reason}")
                self.failed(record, replay, said)
                return
        meta = dict((replay.history or {}).get("meta") or {})
        result = {"outputs": outputs, "meta": {node: meta[node] for node in outputs if node in meta}}
        self._end(record, replay, "success", lambda: replay.success(outputs, meta), result)

    def ended(self, record: Record, replay: Replay, job: Mapping[str, Any]) -> None:
        kind, data = replay.end or ("", {})
        if job.get("state") == "cancelled":
            node = {"node_id": data.get("node_id") or replay.node, "node_type": data.get("node_type", "")}
            said = {**node, "executed": data.get("executed", [])}
            self._end(record, replay, "error", lambda: replay.interrupted(said))
        else:
            said = failed(job.get("failure") or {}, data if kind == "execution_error" else {}, record.prompt)
            self.failed(record, replay, said)

    def failed(self, record: Record, replay: Replay, said: Mapping[str, Any]) -> None:
        """`said`: the event of it."""
        self._end(record, replay, "error", lambda: replay.error(said))

    def _end(
        self,
        record: Record,
        replay: Replay,
        status: str,
        say: Callable[[], None],
        result: dict[str, Any] | None = None,
    ) -> None:
        """The order of ComfyUI's own executor: the last event, the history, and that nothing runs."""
        self._queue.begin(record.id)
        say()
        self._queue.end(record.id, result or {"outputs": {}, "meta": {}}, status, replay.messages)
        replay.over()
        LOG.info("%s: %s", record.id, replay.messages[-1][0] if replay.messages else status)
