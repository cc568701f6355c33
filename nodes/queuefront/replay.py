"""What a worker's ComfyUI said of a prompt, said again to the browser that queued it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .outputs import names_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Send = Callable[[str, dict[str, Any], str | None], None]

_ENDS = ("execution_error", "execution_interrupted")


class Replay:
    """Of one prompt. Each attempt begins anew, and what an earlier one still says is not heard."""

    def __init__(self, job: str, client: str | None, send: Send, at: Callable[[str | None], None]) -> None:
        self._job, self._client, self._send, self._at = job, client, send, at
        self._token = -1
        self._nodes: dict[str, dict[str, Any]] = {}
        self._executed: set[str] = set()
        self._started = False
        self.node: str | None = None
        """The one that runs, as the browser knows it."""
        self.messages: list[tuple[str, dict[str, Any]]] = []
        """As ComfyUI's history keeps them."""
        self.end: tuple[str, dict[str, Any]] | None = None
        """How the last attempt ended, when it was no success."""
        self.history: Mapping[str, Any] | None = None
        """ComfyUI's own entry, once it has one."""

    def feed(self, entry: Mapping[str, Any]) -> None:
        """One entry of the job's trail: {t: token, k: kind, d: data}."""
        token, kind, data = entry.get("t"), entry.get("k"), entry.get("d")
        if not isinstance(token, int) or not isinstance(kind, str) or not isinstance(data, dict):
            return
        if token < self._token:
            return
        if token > self._token:
            self._begin_again(token)
        hear = {
            "execution_start": self._execution_start,
            "execution_cached": self._execution_cached,
            "executing": self._executing,
            "progress_state": self._progress_state,
            "progress": self._progress,
            "executed": self._executed_there,
            "history": self._history,
        }.get(kind)
        data = {**data, "prompt_id": self._job}
        if kind in _ENDS:
            self.end = (kind, data)
        elif hear is not None:  # a newer worker says more than a browser has to know
            hear(data)

    def _execution_start(self, _data: dict[str, Any]) -> None:
        self.start()

    def _execution_cached(self, data: dict[str, Any]) -> None:
        self.start()
        self._note("execution_cached", {"nodes": data.get("nodes") or [], "prompt_id": self._job})

    def _progress(self, data: dict[str, Any]) -> None:
        self._say("progress", data)

    def _executed_there(self, data: dict[str, Any]) -> None:
        """With files it is told when they are here."""
        if not names_files(data.get("output")):
            self._said_executed(data)

    def _history(self, data: dict[str, Any]) -> None:
        self.history = data

    def _begin_again(self, token: int) -> None:
        self._token = token
        self._nodes, self._executed, self.end, self.history = {}, set(), None, None
        self._started = False
        self._at_node(None)

    def start(self) -> None:
        if not self._started:
            self._started = True
            self.messages = []
            self._note("execution_start", {"prompt_id": self._job})

    def _executing(self, data: dict[str, Any]) -> None:
        if data.get("node") is not None:
            self._at_node(str(data.get("display_node") or data["node"]))
            self._say("executing", data)

    def _progress_state(self, data: dict[str, Any]) -> None:
        """The trail has what changed, the browser gets all of it."""
        changed = data.get("nodes")
        if isinstance(changed, dict):
            for node, state in changed.items():
                if isinstance(state, dict):
                    self._nodes[node] = {**state, "node_id": node, "prompt_id": self._job}
            self._say("progress_state", {"prompt_id": self._job, "nodes": dict(self._nodes)})

    # --- its end ---------------------------------------------------------------------------------

    def success(self, outputs: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.start()
        for node, output in outputs.items():
            if node not in self._executed:
                shown = meta.get(node) or {}
                self._said_executed(
                    {
                        "node": node,
                        "display_node": shown.get("display_node", node),
                        "output": output,
                        "prompt_id": self._job,
                    }
                )
        self._note("execution_success", {"prompt_id": self._job})

    def error(self, data: Mapping[str, Any]) -> None:
        self.start()
        self._note("execution_error", {"executed": sorted(self._executed), **data, "prompt_id": self._job})

    def interrupted(self, data: Mapping[str, Any]) -> None:
        self.start()
        self._note("execution_interrupted", {**data, "prompt_id": self._job}, broadcast=True)

    def over(self) -> None:
        """After it went into the history."""
        self._at_node(None)
        self._say("executing", {"node": None, "prompt_id": self._job})

    def _said_executed(self, data: dict[str, Any]) -> None:
        self._executed.add(str(data.get("node")))
        self._say("executed", data)

    def _at_node(self, node: str | None) -> None:
        self.node = node
        self._at(self._client if node is not None else None)

    def _note(self, kind: str, data: dict[str, Any], *, broadcast: bool = False) -> None:
        data = {**data, "timestamp": int(time.time() * 1000)}
        self.messages.append((kind, data))
        if broadcast or self._client is not None:
            self._send(kind, data, self._client)

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        if self._client is not None:
            self._send(kind, dict(data), self._client)
