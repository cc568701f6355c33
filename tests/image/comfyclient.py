"""A small client of ComfyUI's HTTP interface. Standard library only: it also runs from an installed wheel."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# A node of a workflow in API format: {"class_type": …, "inputs": {…}}, by id.
Workflow = dict[str, dict[str, Any]]


class ComfyError(Exception):
    """ComfyUI did not do what was asked; the message says what it said."""


class RefusedError(ComfyError):
    """POST /prompt was refused: `node_errors` is what is wrong with which node."""

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        super().__init__(f"{message}; node_errors: {json.dumps(node_errors, indent=1)}")
        self.node_errors = node_errors


class FailedError(ComfyError):
    """The workflow ran and ended badly."""


# A machine's proxy cannot reach a port that is published on its loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, kw_only=True)
class Result:
    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def images(self) -> list[StoredImage]:
        return [
            StoredImage(filename=i["filename"], subfolder=i["subfolder"], type=i["type"])
            for node in sorted(self.outputs)
            for i in self.outputs[node].get("images", [])
        ]


@dataclass(frozen=True)
class ComfyClient:
    base_url: str
    timeout: float = 30  # seconds, for one request

    def get(self, path: str) -> bytes:
        return self._request(urllib.request.Request(self.base_url + path))

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def system_stats(self) -> Any:
        return self.get_json("/system_stats")

    def object_info(self, node: str | None = None) -> Any:
        return self.get_json(f"/object_info/{urllib.parse.quote(node)}" if node else "/object_info")

    def submit(self, workflow: Workflow) -> str:
        """Queue a workflow; its prompt_id. Raises RefusedError with the node_errors."""
        body = json.dumps({"prompt": workflow}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.base_url}/prompt", data=body, headers=headers)
        try:
            answer = json.loads(self._request(request))
        except urllib.error.HTTPError as error:
            raise _refused(error) from None
        if answer.get("node_errors"):
            raise RefusedError("POST /prompt", answer["node_errors"])
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 120) -> Result:
        """Poll /history until the workflow has ended. Raises FailedError or TimeoutError."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return _ended(prompt_id, entry)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        raise TimeoutError(f"workflow {prompt_id} has not ended after {timeout:g} s")

    def run(self, workflow: Workflow, timeout: float = 120) -> Result:
        return self.wait(self.submit(workflow), timeout)

    def view(self, image: StoredImage) -> bytes:
        query = urllib.parse.urlencode(
            {"filename": image.filename, "subfolder": image.subfolder, "type": image.type}
        )
        return self.get(f"/view?{query}")

    def _request(self, request: urllib.request.Request) -> bytes:
        with _DIRECT.open(request, timeout=self.timeout) as response:
            body: bytes = response.read()
        return body


def _refused(error: urllib.error.HTTPError) -> ComfyError:
    with error:
        text = error.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        return RefusedError(f"POST /prompt: {answer['error']['message']}", answer.get("node_errors") or {})
    except (ValueError, KeyError, TypeError):
        return ComfyError(f"POST /prompt answers {error.code}: {text[:500]}")


def _ended(prompt_id: str, entry: Mapping[str, Any]) -> Result:
    status = entry.get("status") or {}
    if status.get("status_str") == "success":
        return Result(prompt_id=prompt_id, outputs=entry.get("outputs", {}))
    for kind, details in status.get("messages", []):
        if kind == "execution_error":
            node = f"{details.get('node_type')} (node {details.get('node_id')})"
            raise FailedError(f"{node}: {details.get('exception_type')}: {details.get('exception_message')}")
    raise FailedError(f"workflow {prompt_id} ended with {status.get('status_str')!r}")


def invert_workflow(width: int, height: int, color: int, prefix: str) -> Workflow:
    """EmptyImage → ImageInvert → SaveImage: the cheapest workflow that writes a picture."""
    inputs: dict[str, Any] = {"width": width, "height": height, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }
