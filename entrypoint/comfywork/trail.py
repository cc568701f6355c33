"""What ComfyUI says of a job while it runs, for whoever shows it as ComfyUI's own frontend does.

Written for jobs that ask for it: `extra: {"comfywork": {"trail": true}}`. A Redis stream a job; an entry is the lease's
token, the event's kind and its data, as ComfyUI sent them. Nothing depends on it: what is lost is made up for by the
job itself.
"""

from __future__ import annotations

import json
import threading
import zlib
from typing import TYPE_CHECKING, Any

from comfywork import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import redis

KINDS = (
    "execution_start",
    "execution_cached",
    "executing",
    "executed",
    "execution_error",
    "execution_interrupted",
)
_LATEST = ("progress",)
"""Of these only the last within one flush is worth telling; progress_state is told by its changes."""
_NODE = ("value", "max", "state", "display_node_id", "parent_node_id", "real_node_id")
LONGEST = 256 << 10  # bytes of one event
_HISTORY = 4 << 20  # bytes of ComfyUI's own entry of a job
_MOST = 5000  # entries
PAGE = 500
START = "0-0"
_SHORT = 64  # characters below which nothing is compressed


class Trail:
    """Of one attempt. `hear` and `ended` only note; `flush` tells Redis, and may be called by another thread."""

    def __init__(self, connection: redis.Redis, job: str, token: int, ttl: float) -> None:
        self._redis, self._job, self._token, self._ttl = connection, job, token, int(ttl)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: list[tuple[str, Mapping[str, Any]]] = []
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}

    @property
    def fresh(self) -> bool:
        return bool(self._waiting or self._latest or self._changed)

    def hear(self, kind: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            if kind in KINDS:
                self._waiting.append(
                    (kind, {name: value for name, value in data.items() if name != "prompt_id"})
                )
            elif kind in _LATEST:
                self._latest[kind] = {name: value for name, value in data.items() if name != "prompt_id"}
            elif kind == "progress_state" and isinstance(data.get("nodes"), dict):
                self._hear_nodes(data["nodes"])

    def _hear_nodes(self, nodes: Mapping[str, Any]) -> None:
        for node, state in nodes.items():
            if not isinstance(state, dict):
                continue
            told = {name: state[name] for name in _NODE if name in state}
            if self._nodes.get(node) != told:
                self._nodes[node] = self._changed[node] = told

    def ended(self, history: Mapping[str, Any]) -> None:
        """`history`: ComfyUI's own entry of the job."""
        kept = {"outputs": history.get("outputs") or {}, "meta": history.get("meta") or {}}
        if len(json.dumps(kept)) <= _HISTORY:
            with self._lock:
                self._waiting.append(("history", kept))

    def flush(self) -> None:
        """Raises redis.RedisError, and then keeps what it has not told. `hear` never waits for it."""
        with self._sending:
            with self._lock:
                self._waiting += self._latest.items()
                if self._changed:
                    self._waiting.append(("progress_state", {"nodes": self._changed}))
                self._latest, self._changed = {}, {}
                waiting = list(self._waiting)
            if not waiting:
                return
            self._send(waiting)
            with self._lock:
                del self._waiting[: len(waiting)]

    def _send(self, waiting: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        key = names.trail(self._job)
        with self._redis.pipeline(transaction=False) as pipe:
            for kind, data in waiting:
                if (entry := self._entry(kind, data)) is not None:
                    pipe.xadd(key, entry, maxlen=_MOST, approximate=True)
            pipe.expire(key, self._ttl)
            pipe.publish(names.EVENTS, json.dumps({"job": self._job, "state": "processing", "trail": True}))
            pipe.execute()

    def _entry(self, kind: str, data: Mapping[str, Any]) -> dict[Any, Any] | None:
        try:
            raw = json.dumps(data).encode()
        except (TypeError, ValueError):
            return None
        if len(raw) > (_HISTORY if kind == "history" else LONGEST):
            return None
        return {"t": self._token, "k": kind, "z" if len(raw) > _SHORT else "d": _packed(raw)}


def read(connection: redis.Redis, job: str, after: str) -> tuple[list[dict[str, Any]], str]:
    """A page of entries after that one, as {t: token, k: kind, d: data}, and the id of the last."""
    found = []
    page: Any = connection.xrange(names.trail(job), min=f"({after}", count=PAGE)
    for entry_id, fields in page:
        after = entry_id.decode()
        packed = fields.get(b"z")
        try:
            raw = zlib.decompress(packed) if packed is not None else fields[b"d"]
            data = json.loads(raw, parse_constant=lambda _: None)  # NaN, which is no JSON
            found.append({"t": int(fields[b"t"]), "k": fields[b"k"].decode(), "d": data})
        except (KeyError, ValueError, zlib.error):
            continue
    return found, after


def _packed(raw: bytes) -> bytes:
    return zlib.compress(raw, 1) if len(raw) > _SHORT else raw
