"""A small client of ComfyUI: submit, watch, fetch, upload, queue, history, interrupt.

Standard library only, so that it may be copied anywhere; comfysocket.py goes with it.

    python comfyclient.py http://127.0.0.1:8188 images/workflows/txt2img.json \\
        --set checkpoint=sd_xl_base_1.0.safetensors --set seed=7 --output pictures
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfysocket import Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

# A node of a workflow in API format: {"class_type": …, "inputs": {…}}, by id.
Workflow = dict[str, dict[str, Any]]

_PASSING = (502, 503, 504)  # what a proxy says while the server behind it starts
_PAUSE = 0.25  # seconds before the first retry; each further one waits twice as long


class ComfyError(Exception):
    """ComfyUI did not do what was asked; the message says what it said."""


class RefusedError(ComfyError):
    """POST /prompt was refused: `node_errors` is what is wrong with which node, `remedies` what mends it."""

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        self.node_errors = node_errors
        self.remedies = remedies(node_errors)
        lines = "".join(f"\n  {remedy}" for remedy in self.remedies)
        super().__init__(f"{message}{lines}")


class FailedError(ComfyError):
    """The workflow ran and ended badly."""


class InterruptedPromptError(FailedError):
    """Somebody interrupted it."""


# A machine's proxy cannot reach a port that is published on its loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    filename: str
    subfolder: str
    type: str

    @property
    def name(self) -> str:
        """As a LoadImage node names it."""
        path = f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename
        return path if self.type == "input" else f"{path} [{self.type}]"


@dataclass(frozen=True, kw_only=True)
class Result:
    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    messages: Sequence[Any] = ()
    """[kind, details] of what happened while it ran."""

    @property
    def images(self) -> list[StoredImage]:
        return self.files("images")

    def files(self, kind: str) -> list[StoredImage]:
        """Of every node, what it lists under `kind`: images, latents, …"""
        return [
            StoredImage(filename=i["filename"], subfolder=i["subfolder"], type=i["type"])
            for node in sorted(self.outputs)
            for i in self.outputs[node].get(kind, [])
        ]

    @property
    def cached(self) -> set[str]:
        """Nodes that did not run, since nothing in front of them had changed."""
        return {n for kind, details in self.messages if kind == "execution_cached" for n in details["nodes"]}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One message of /ws: `progress`, `executing`, `executed`, …; `preview` has a picture."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    picture: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Queue:
    running: tuple[str, ...]
    pending: tuple[str, ...]


@dataclass(frozen=True)
class ComfyClient:
    base_url: str
    timeout: float = 30  # seconds, for one request
    retries: int = 3  # of a request that found nobody; what ComfyUI answered is never asked again
    name: str = field(default_factory=lambda: uuid.uuid4().hex)  # which events are ours

    # --- asking ------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        return self._send("GET", path)

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, data: Any) -> bytes:
        return self._send("POST", path, json.dumps(data).encode(), "application/json")

    def system_stats(self) -> Any:
        return self.get_json("/system_stats")

    def object_info(self, node: str | None = None) -> Any:
        return self.get_json(f"/object_info/{urllib.parse.quote(node)}" if node else "/object_info")

    def models(self, folder: str) -> list[str]:
        found: list[str] = self.get_json(f"/models/{urllib.parse.quote(folder)}")
        return found

    # --- a workflow's way --------------------------------------------------------------------

    def submit(self, workflow: Workflow, *, extra: Mapping[str, Any] | None = None) -> str:
        """Queue a workflow; its prompt_id. Raises RefusedError with the node_errors.

        The id is ours, so that a request whose answer got lost is not queued a second time.
        """
        prompt_id = str(uuid.uuid4())
        body: dict[str, Any] = {"prompt": workflow, "prompt_id": prompt_id, "client_id": self.name}
        if extra:
            body["extra_data"] = dict(extra)
        for attempt in range(self.retries + 1):
            try:
                answer = json.loads(
                    self._once("POST", "/prompt", json.dumps(body).encode(), "application/json")
                )
            except urllib.error.HTTPError as error:
                if error.code in _PASSING and attempt < self.retries:
                    error.close()
                    time.sleep(_PAUSE * 2**attempt)
                    continue
                raise _refused(error) from None
            except (OSError, HTTPException):
                if attempt == self.retries:
                    raise
                time.sleep(_PAUSE * 2**attempt)
                if self._knows(prompt_id):
                    return prompt_id
                continue
            if answer.get("node_errors"):
                raise RefusedError("POST /prompt", answer["node_errors"])
            return str(answer["prompt_id"])
        raise AssertionError("unreachable")

    def wait(self, prompt_id: str, timeout: float = 120) -> Result:
        """Poll /history until the workflow has ended. Raises FailedError or TimeoutError."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while time.monotonic() < deadline:
            entry = self.history(prompt_id).get(prompt_id)
            if entry is not None:
                return _ended(prompt_id, entry)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        raise TimeoutError(f"workflow {prompt_id} has not ended after {timeout:g} s")

    def run(self, workflow: Workflow, timeout: float = 120) -> Result:
        return self.wait(self.submit(workflow), timeout)

    def watch(self, workflow: Workflow, see: Callable[[Event], None], timeout: float = 120) -> Result:
        """Run a workflow and call `see` with every event of it, as they come over the websocket."""
        deadline = time.monotonic() + timeout
        socket = self.listen()
        try:
            prompt_id = self.submit(workflow)
            while True:
                event = _event(socket.receive(max(deadline - time.monotonic(), 0.001)))
                if event.data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                see(event)
                if event.kind in ("execution_success", "execution_error", "execution_interrupted"):
                    # The history is written a moment after the event.
                    return self.wait(prompt_id, max(deadline - time.monotonic(), 5))
        finally:
            socket.close()

    def listen(self) -> Socket:
        """The websocket on which the events of this client's workflows come."""
        address = self.base_url.replace("http://", "ws://", 1)
        return Socket(f"{address}/ws?clientId={self.name}", timeout=self.timeout)

    def view(self, image: StoredImage) -> bytes:
        query = {"filename": image.filename, "subfolder": image.subfolder, "type": image.type}
        return self.get(f"/view?{urllib.parse.urlencode(query)}")

    # --- files -------------------------------------------------------------------------------

    def upload(
        self, name: str, data: bytes, *, overwrite: bool = False, subfolder: str = "", kind: str = "input"
    ) -> StoredImage:
        """A picture for LoadImage. Without `overwrite`, another picture of that name leaves both."""
        fields = {"overwrite": str(overwrite).lower(), "subfolder": subfolder, "type": kind}
        return self._upload("/upload/image", name, data, fields)

    def upload_mask(self, name: str, data: bytes, of: StoredImage) -> StoredImage:
        """A copy of the picture `of`, whose alpha channel is that of `data`."""
        original = {"filename": of.filename, "subfolder": of.subfolder, "type": of.type}
        fields = {"original_ref": json.dumps(original), "type": "input"}
        return self._upload("/upload/mask", name, data, fields)

    def _upload(self, path: str, name: str, data: bytes, fields: Mapping[str, str]) -> StoredImage:
        border = uuid.uuid4().hex
        parts = [
            f'--{border}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        parts += [f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), data]
        body = b"".join([*parts, f"\r\n--{border}--\r\n".encode()])
        # Once: whether a lost answer means a stored file, nobody can tell.
        answer = json.loads(self._once("POST", path, body, f"multipart/form-data; boundary={border}"))
        return StoredImage(filename=answer["name"], subfolder=answer["subfolder"], type=answer["type"])

    # --- the queue and what was ----------------------------------------------------------------

    def queue(self) -> Queue:
        found = self.get_json("/queue")
        return Queue(
            running=tuple(item[1] for item in found["queue_running"]),
            pending=tuple(item[1] for item in found["queue_pending"]),
        )

    def cancel(self, prompt_ids: Iterable[str]) -> None:
        """Take waiting workflows out of the queue."""
        self.post("/queue", {"delete": list(prompt_ids)})

    def clear_queue(self) -> None:
        self.post("/queue", {"clear": True})

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop a running workflow; without an id whichever runs, also somebody else's."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def history(self, prompt_id: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self.get_json(f"/history/{prompt_id}" if prompt_id else "/history")
        return found

    def forget(self, prompt_ids: Iterable[str]) -> None:
        self.post("/history", {"delete": list(prompt_ids)})

    def clear_history(self) -> None:
        self.post("/history", {"clear": True})

    def free(self) -> None:
        """Unload models and forget results, so that equal workflows run again."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    # --- one request ---------------------------------------------------------------------------

    def _knows(self, prompt_id: str) -> bool:
        try:
            queue = self.queue()
            return prompt_id in (*queue.running, *queue.pending) or prompt_id in self.history(prompt_id)
        except (OSError, ValueError, HTTPException):
            return False

    def _send(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> bytes:
        """A request that may be sent twice without harm."""
        for attempt in range(self.retries + 1):
            try:
                return self._once(method, path, body, kind)
            except urllib.error.HTTPError as error:
                if error.code not in _PASSING or attempt == self.retries:
                    raise
                error.close()
            except (OSError, HTTPException):
                if attempt == self.retries:
                    raise
            time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> bytes:
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.base_url + path, data=body, headers=headers, method=method)
        with _DIRECT.open(request, timeout=self.timeout) as response:
            answer: bytes = response.read()
        return answer


# --- what ComfyUI says, for people ---------------------------------------------------------------


def _refused(error: urllib.error.HTTPError) -> ComfyError:
    with error:
        text = error.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        said = answer["error"]
        message = said["message"] if isinstance(said, dict) else str(said)
        details = said.get("details") if isinstance(said, dict) else None
        if details and details not in message and not answer.get("node_errors"):
            message = f"{message} ({details})"
        return RefusedError(f"POST /prompt: {message}", answer.get("node_errors") or {})
    except (ValueError, KeyError, TypeError):
        return ComfyError(f"POST /prompt answers {error.code}: {text[:500]}")


def remedies(node_errors: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each mistake: which node, which input, and what to do about it."""
    lines = []
    for node, found in sorted(node_errors.items()):
        where = f"node {node} ({found.get('class_type', '?')})"
        lines += [f"{where}: {_remedy(error)}" for error in found.get("errors", ())]
    return tuple(lines)


# Loaders' inputs and the folders their files belong in.
_FOLDERS = {
    "ckpt_name": "models/checkpoints",
    "clip_name": "models/text_encoders",
    "control_net_name": "models/controlnet",
    "image": "input",
    "lora_name": "models/loras",
    "unet_name": "models/diffusion_models",
    "vae_name": "models/vae",
}


def _remedy(error: Mapping[str, Any]) -> str:
    info = error.get("extra_info") or {}
    name = info.get("input_name", "?")
    kind = error.get("type")
    if kind == "value_not_in_list" or (name in _FOLDERS and kind == "custom_validation_failed"):
        return _not_in_list(name, info)
    if kind == "required_input_missing":
        return f"{name} is missing: connect an output to it, or give it a value"
    if kind == "return_type_mismatch":
        return f"{name} is connected to another type of output ({error.get('details')})"
    if kind in ("value_smaller_than_min", "value_bigger_than_max"):
        limits = (info.get("input_config") or [None, {}])[-1] or {}
        return f"{name} = {info.get('received_value')!r}: from {limits.get('min')} to {limits.get('max')} is allowed"
    return f"{error.get('message')}: {error.get('details')}"


def _not_in_list(name: str, info: Mapping[str, Any]) -> str:
    value = str(info.get("received_value"))
    known = [str(v) for v in _choices(info.get("input_config"))]
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    text = f"{name}: there is no {value!r}"
    if near:
        text += f"; did you mean {near[0]!r}?"
    elif known:
        text += f"; there are: {', '.join(known[:8])}{' …' if len(known) > 8 else ''}"
    if name in _FOLDERS:
        text += f"; put the file into {_FOLDERS[name]} of the data volume" + (
            " (it is empty)" if not known else ""
        )
    return text


def _choices(config: Any) -> Sequence[Any]:
    """Of an input's declaration: [[…], {}] or ["COMBO", {"options": […]}]."""
    if not isinstance(config, list) or not config:
        return ()
    if isinstance(config[0], list):
        return config[0]
    options = config[1].get("options") if len(config) > 1 and isinstance(config[1], dict) else None
    return options if isinstance(options, list) else ()


def _ended(prompt_id: str, entry: Mapping[str, Any]) -> Result:
    status = entry.get("status") or {}
    messages = status.get("messages", [])
    if status.get("status_str") == "success":
        return Result(prompt_id=prompt_id, outputs=entry.get("outputs", {}), messages=messages)
    for kind, details in messages:
        node = f"{details.get('node_type')} (node {details.get('node_id')})"
        if kind == "execution_interrupted":
            raise InterruptedPromptError(f"workflow {prompt_id} was interrupted in {node}")
        if kind == "execution_error":
            raise FailedError(f"{node}: {details.get('exception_type')}: {details.get('exception_message')}")
    raise FailedError(f"workflow {prompt_id} ended with {status.get('status_str')!r}")


_PREVIEWS = (1, 4)  # a picture; a picture with JSON about it in front


def _event(message: Any) -> Event:
    if message.kind == "text":
        found = json.loads(message.data)
        return Event(kind=found["type"], data=found.get("data") or {})
    kind = int.from_bytes(message.data[:4], "big")
    if kind not in _PREVIEWS:
        return Event(kind=f"binary {kind}")
    size = int.from_bytes(message.data[4:8], "big")
    if kind == 1:
        return Event(kind="preview", picture=message.data[8:])
    return Event(
        kind="preview", data=json.loads(message.data[8 : 8 + size]), picture=message.data[8 + size :]
    )


# --- workflows -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Template:
    """A workflow with named parameters: a file that POST /prompt takes as it is, and says what may be set."""

    workflow: Workflow
    parameters: Mapping[str, Mapping[str, Any]]
    """name → {at: [node, input], says}."""

    def value(self, name: str) -> Any:
        node, at = self.parameters[name]["at"]
        return self.workflow[node]["inputs"][at]

    def fill(self, **values: Any) -> Workflow:
        """The workflow with these values. ComfyError for a parameter that it does not have."""
        made = copy.deepcopy(self.workflow)
        for name, value in values.items():
            if name not in self.parameters:
                near = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.5)
                there = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self.parameters)}"
                raise ComfyError(f"this workflow has no parameter {name}; {there}")
            node, at = self.parameters[name]["at"]
            made[node]["inputs"][at] = value
        return made


def load_template(path: Path) -> Template:
    data = json.loads(path.read_text(encoding="utf-8"))
    own = (data.get("extra_data") or {}).get("imgbuild") or {}
    return Template(workflow=data["prompt"], parameters=own.get("parameters") or {})


def invert_workflow(width: int, height: int, color: int, prefix: str) -> Workflow:
    """EmptyImage → ImageInvert → SaveImage: the cheapest workflow that writes a picture."""
    inputs: dict[str, Any] = {"width": width, "height": height, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


# --- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a workflow of a ComfyUI server and fetch its pictures.")
    parser.add_argument("server", help="http://127.0.0.1:8188")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for the pictures")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    args = parser.parse_args(argv)
    client = ComfyClient(args.server.rstrip("/"))
    try:
        made = _filled(client, load_template(args.workflow), args.set)
        result = client.watch(made, _show, timeout=args.timeout)
        args.output.mkdir(parents=True, exist_ok=True)
        for image in result.images:
            path = args.output / image.filename
            path.write_bytes(client.view(image))
            print(path)
    except (ComfyError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _filled(client: ComfyClient, template: Template, words: Sequence[str]) -> Workflow:
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ComfyError(f"--set {word}: write it as NAME=VALUE")
        if name == "image" and Path(text).is_file():
            values[name] = client.upload(Path(text).name, Path(text).read_bytes()).name
            continue
        old = template.value(name) if name in template.parameters else ""
        values[name] = type(old)(text) if isinstance(old, int | float) else text
    return template.fill(**values)


def _show(event: Event) -> None:
    if event.kind == "progress":
        print(f"\r{event.data['value']}/{event.data['max']}", end="", file=sys.stderr, flush=True)
    elif event.kind == "execution_success":
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
