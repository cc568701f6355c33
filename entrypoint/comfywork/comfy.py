"""The ComfyUI beside a worker, over HTTP and its websocket."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from comfywork.errors import ComfyworkError
from comfywork.views import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from websockets.sync.client import ClientConnection

    Hear = Callable[[str, Mapping[str, Any]], None]

_TIMEOUT = httpx.Timeout(10.0, read=60.0)
_QUICK = 3.0  # seconds for a question whose answer may not hold up a heartbeat
_HEARD = 0.5  # seconds for which the websocket is listened to before anything else is looked at
_LOOK = 2.0  # seconds between two looks at the history, should the websocket be silent
_LOST = 3  # looks in a row that find a prompt nowhere
_FREEING = 1.0  # seconds
_OUT_OF_MEMORY = ("outofmemory", "out of memory", "oom")
_MESSAGE = 1 << 20  # bytes; previews are pictures, and longer ones are not wanted


class ComfyGoneError(ComfyworkError):
    """ComfyUI does not answer: it has ended, or is about to."""


class ComfyAwayError(ComfyGoneError):
    """Nobody listens at its port: what was asked of it has not begun."""


class RejectedError(ComfyworkError):
    """ComfyUI refuses the prompt. `details` is its own answer."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class FileGoneError(ComfyworkError):
    """ComfyUI names an output that is not on its disk any more."""


@dataclass(frozen=True, kw_only=True)
class File:
    """An output as ComfyUI's history names it."""

    node: str
    number: int
    """Among the node's own, from 0."""
    name: str
    subfolder: str
    kind: str
    """output or temp"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a prompt ended."""

    status: Literal["success", "error", "interrupted"]
    files: tuple[File, ...] = ()
    shown: tuple[File, ...] = ()
    """All that a browser would show: with what nodes only preview."""
    history: Mapping[str, Any] = field(default_factory=dict)
    """ComfyUI's own entry."""
    message: str = ""
    details: str = ""
    out_of_memory: bool = False


@dataclass(kw_only=True)
class _Followed:
    """What the websocket has said of one prompt."""

    nodes: int
    done: set[str] = field(default_factory=set)
    node: str = ""
    value: int = 0
    maximum: int = 0
    over: bool = False

    @property
    def progress(self) -> Progress:
        return Progress(
            value=self.value, maximum=self.maximum, node=self.node, done=len(self.done), nodes=self.nodes
        )


class Comfy:
    def __init__(self, address: str, client_id: str) -> None:
        self.address, self.client_id = address, client_id
        self._http = httpx.Client(base_url=address, timeout=_TIMEOUT, trust_env=False)
        self._socket: ClientConnection | None = None

    def close(self) -> None:
        self._hang_up()
        self._http.close()

    # --- asking ----------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether it takes prompts."""
        try:
            return "exec_info" in self._json("GET", "/prompt", timeout=_QUICK)
        except ComfyGoneError:
            return False

    def system(self) -> dict[str, Any]:
        """/system_stats; empty when it does not answer."""
        try:
            return self._json("GET", "/system_stats", timeout=_QUICK)
        except ComfyGoneError:
            return {}

    def where(self, prompt_id: str) -> Literal["history", "queue", "nowhere"]:
        """The queue is asked first: a prompt that ends between the two questions is found in the history."""
        queue = self._json("GET", "/queue")
        known = [entry[1] for part in ("queue_running", "queue_pending") for entry in queue.get(part, [])]
        if prompt_id in known:
            return "queue"
        return "history" if self.history(prompt_id) else "nowhere"

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        found = self._json("GET", f"/history/{prompt_id}").get(prompt_id)
        return found if isinstance(found, dict) and found.get("status") else None

    # --- doing -----------------------------------------------------------------------------------

    def submit(
        self,
        prompt_id: str,
        workflow: Mapping[str, Any],
        extra: Mapping[str, Any],
        targets: Sequence[str] | None = None,
    ) -> None:
        """RejectedError when ComfyUI finds it wrong. `targets`: only these output nodes."""
        body = {
            "prompt": workflow,
            "prompt_id": prompt_id,
            "client_id": self.client_id,
            "extra_data": dict(extra),
            **({} if targets is None else {"partial_execution_targets": list(targets)}),
        }
        answer = self._request("POST", "/prompt", json=body)
        if answer.status_code == httpx.codes.OK:
            return
        raise RejectedError(*_refusal(answer))

    def upload(self, name: str, folder: str, content: IO[bytes]) -> str:
        """Put a file into the input folder. Its place there."""
        answer = self._request(
            "POST",
            "/upload/image",
            files={"image": (name, content, "application/octet-stream")},
            data={"subfolder": folder, "type": "input", "overwrite": "true"},
        )
        if answer.status_code != httpx.codes.OK:
            raise RejectedError(f"ComfyUI does not take the input {name}", _said(answer))
        found = answer.json()
        return f"{found['subfolder']}/{found['name']}" if found.get("subfolder") else str(found["name"])

    def interrupt(self, prompt_id: str) -> None:
        """End this prompt, and no other. It may have ended already."""
        self._request("POST", "/queue", json={"delete": [prompt_id]})
        self._request("POST", "/interrupt", json={"prompt_id": prompt_id})

    def free(self, *, models: bool) -> None:
        """Forget cached results, and unload the models too if asked to, before the next prompt."""
        self._request("POST", "/free", json={"unload_models": models, "free_memory": True})
        # ComfyUI does it between two prompts, and says nothing: a prompt that comes at once may be the first of the two.
        time.sleep(_FREEING)

    def forget(self, prompt_id: str) -> None:
        self._request("POST", "/history", json={"delete": [prompt_id]}, timeout=_QUICK)

    @contextmanager
    def open(self, file: File) -> Iterator[tuple[httpx.Response, int | None]]:
        """Its bytes, as a response to be read in pieces, and how many there are."""
        where = {"filename": file.name, "subfolder": file.subfolder, "type": file.kind}
        try:
            with self._http.stream("GET", "/view", params=where) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    raise FileGoneError(f"{file.name} is not in ComfyUI's folder any more")
                if answer.status_code != httpx.codes.OK:
                    raise ComfyGoneError(f"ComfyUI answers {answer.status_code} for the output {file.name}")
                length = answer.headers.get("content-length")
                yield answer, int(length) if length and "content-encoding" not in answer.headers else None
        except httpx.HTTPError as error:
            raise ComfyGoneError(f"ComfyUI does not hand out {file.name}: {error}") from None

    # --- following -------------------------------------------------------------------------------

    def follow(
        self,
        prompt_id: str,
        nodes: int,
        progress: Callable[[Progress], None],
        expired: Callable[[], bool],
        hear: Hear | None = None,
    ) -> Ended:
        """How the prompt ends. ComfyGoneError when ComfyUI does before it; TimeoutError once `expired` says so.

        `hear` gets every event of the prompt: its kind, its data.
        """
        followed = _Followed(nodes=nodes)
        looked, lost = time.monotonic(), 0
        while True:
            before = followed.progress
            self._listen(prompt_id, followed, hear)
            if followed.progress != before:
                progress(followed.progress)
            if expired():
                raise TimeoutError
            if not followed.over and time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            if found := self.history(prompt_id):
                return _ended(found)
            if self.where(prompt_id) == "nowhere":
                lost += 1
                if lost >= _LOST:
                    return Ended(status="interrupted", message="ComfyUI has dropped the prompt")
                time.sleep(_HEARD)
            else:
                lost, followed.over = 0, False

    def _listen(self, prompt_id: str, followed: _Followed, hear: Hear | None) -> None:
        """One message, or half a second of silence."""
        try:
            if self._socket is None:
                self._socket = self._dial()
            text = self._socket.recv(timeout=_HEARD)
        except TimeoutError:
            return
        except (OSError, WebSocketException):
            self._hang_up()
            if self._gone():
                raise ComfyGoneError("ComfyUI has ended while it ran the job") from None
            time.sleep(_HEARD)
            return
        if isinstance(text, str):
            _take_in(text, prompt_id, followed, hear)

    def _gone(self) -> bool:
        """Whether nobody listens at its port. One that is busy, and answers late, is not gone."""
        try:
            self._http.get("/prompt", timeout=_QUICK)
        except httpx.TimeoutException:
            return False
        except httpx.HTTPError:
            return True
        return False

    def listen_early(self) -> None:
        """Connect before a prompt is submitted, so that none of its messages is missed."""
        if self._socket is None:
            try:
                self._socket = self._dial()
            except (OSError, WebSocketException):
                return  # following looks at the history, too

    def _dial(self) -> ClientConnection:
        address = urlsplit(self.address)
        scheme = "wss" if address.scheme == "https" else "ws"
        where = urlunsplit((scheme, address.netloc, "/ws", f"clientId={self.client_id}", ""))
        return connect(where, open_timeout=_QUICK, close_timeout=1, max_size=64 * _MESSAGE, proxy=None)

    def _hang_up(self) -> None:
        if self._socket is not None:
            with suppress(OSError, WebSocketException):
                self._socket.close()
            self._socket = None

    # --- HTTP ------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, timeout: float | None = None) -> dict[str, Any]:
        more: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        answer = self._request(method, path, **more)
        if answer.status_code != httpx.codes.OK:
            raise ComfyGoneError(f"ComfyUI answers {answer.status_code} to {method} {path}")
        try:
            found = answer.json()
        except ValueError:
            raise ComfyGoneError(f"ComfyUI's answer to {method} {path} is not JSON") from None
        return found if isinstance(found, dict) else {}

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            kind = ComfyAwayError if isinstance(error, httpx.ConnectError) else ComfyGoneError
            raise kind(f"ComfyUI does not answer {method} {path}: {error or type(error).__name__}") from None


def _take_in(text: str, prompt_id: str, followed: _Followed, hear: Hear | None) -> None:
    try:
        message = json.loads(text)
        kind, data = message["type"], message["data"]
    except (ValueError, KeyError, TypeError):
        return
    if not isinstance(data, dict) or data.get("prompt_id") != prompt_id:
        return
    if hear is not None:
        hear(kind, data)
    match kind:
        case "execution_cached":
            followed.done.update(str(node) for node in data.get("nodes", []))
        case "executing":
            if followed.node:
                followed.done.add(followed.node)
            followed.node, followed.value, followed.maximum = str(data.get("node") or ""), 0, 0
            followed.over = data.get("node") is None
        case "progress":
            followed.value, followed.maximum = int(data.get("value", 0)), int(data.get("max", 0))
        case "execution_error" | "execution_interrupted":
            followed.over = True


def _ended(history: Mapping[str, Any]) -> Ended:
    status = history["status"]
    files = tuple(_files(history.get("outputs") or {}))
    if status.get("status_str") == "success":
        kept = tuple(file for file in files if file.kind == "output") or files
        return Ended(status="success", files=kept, shown=files, history=history)
    for name, data in status.get("messages") or []:
        if name == "execution_interrupted":
            return Ended(status="interrupted", message="the prompt was interrupted")
        if name == "execution_error":
            kind, text = str(data.get("exception_type", "")), str(data.get("exception_message", "")).strip()
            where = f"{data.get('node_type', '')} (node {data.get('node_id', '')})"
            return Ended(
                status="error",
                message=f"{where}: {kind.rpartition('.')[2]}: {text}",
                details="".join(data.get("traceback") or []),
                out_of_memory=any(word in f"{kind} {text}".lower() for word in _OUT_OF_MEMORY),
            )
    return Ended(status="error", message="ComfyUI says that the prompt failed, and not why")


def _files(outputs: Mapping[str, Any]) -> Iterator[File]:
    """Every entry of every list that names a file, whatever its node calls the list: images, gifs, audio, 3d."""
    for node, value in outputs.items():
        number = 0
        for entries in value.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
                    yield File(
                        node=str(node),
                        number=number,
                        name=entry["filename"],
                        subfolder=str(entry.get("subfolder") or ""),
                        kind=str(entry.get("type") or "output"),
                    )
                    number += 1


def _refusal(answer: httpx.Response) -> tuple[str, str]:
    """ComfyUI's reasons in words: node, input, what is wrong."""
    try:
        found = answer.json()
        error = found.get("error") or {}
        texts = [
            f"{error.get('message', '')} {error.get('details', '')}".strip()
            if isinstance(error, dict)
            else error
        ]
        for node, value in (found.get("node_errors") or {}).items():
            texts += [
                f"node {node} ({value.get('class_type', '')}): {one.get('message', '')}: {one.get('details', '')}"
                for one in value.get("errors", [])
            ]
    except (ValueError, AttributeError, TypeError):
        return f"ComfyUI answers {answer.status_code}", _said(answer)
    return "; ".join(text for text in texts if text)[:2000] or f"ComfyUI answers {answer.status_code}", _said(
        answer
    )


def _said(answer: httpx.Response) -> str:
    return answer.text[:20000]
