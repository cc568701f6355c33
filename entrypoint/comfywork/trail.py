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
STEPS = ("progress", "progress_state")
"""Of steps that nothing comes between, the last is worth telling; of progress_state what it changes."""
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
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._nodes: dict[str, dict[str, Any]] = {}

    @property
    def fresh(self) -> bool:
        return bool(self._waiting)

    def hear(self, kind: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            if kind == "progress_state" and isinstance(data.get("nodes"), dict):
                if changed := self._changed(data["nodes"]):
                    self._steps_on("progress_state")["nodes"].update(changed)
            elif kind == "progress":
                self._steps_on("progress").update(_without_id(data))
            elif kind in KINDS:
                self._waiting.append((kind, _without_id(data)))

    def _changed(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            node: {name: state[name] for name in _NODE if name in state}
            for node, state in nodes.items()
            if isinstance(state, dict)
        }
        found = {node: state for node, state in found.items() if self._nodes.get(node) != state}
        self._nodes.update(found)
        return found

    def _steps_on(self, kind: str) -> dict[str, Any]:
        """Where the next step is noted: over the one before, unless something else happened in between."""
        for known, data in reversed(self._waiting):
            if known == kind:
                noted: dict[str, Any] = data
                return noted
            if known not in STEPS:
                break
        begun: dict[str, Any] = {"nodes": {}} if kind == "progress_state" else {}
        self._waiting.append((kind, begun))
        return begun

    def ended(self, history: Mapping[str, Any]) -> None:
        """`history`: ComfyUI's own entry of the job."""
        kept = {"outputs": history.get("outputs") or {}, "meta": history.get("meta") or {}}
        with self._lock:
            self._waiting.append(("history", kept))

    def flush(self) -> None:
        """Raises redis.RedisError, and then keeps what it has not told. `hear` never waits for it."""
        with self._sending:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            try:
                self._send(waiting)
            except BaseException:
                with self._lock:
                    self._waiting = waiting + self._waiting
                raise

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


def _without_id(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "prompt_id"}


def _packed(raw: bytes) -> bytes:
    return zlib.compress(raw, 1) if len(raw) > _SHORT else raw
