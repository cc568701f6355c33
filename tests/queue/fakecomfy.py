"""A stand-in for ComfyUI with its HTTP and websocket ways, for what the real one does not do on request.

`python fakecomfy.py PORT FOLDER`. Its only node is `Fake`, with `filename_prefix` and what it is to do:

  text      what its output file holds          seconds   how long it runs
  fail      raise this message                  oom       "once" or "always"
  die       end the process in the middle       hang      ignore interrupts, for this many seconds
  vanish    its file is gone when asked for     count     files (1)
  input     a file's name in the input folder: its bytes are the output

Beside ComfyUI's own, GET /fake tells what was executed.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import heapq
import itertools
import json
import os
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


class PromptInterruptedError(Exception):
    pass


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("input", "output"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.lock = threading.Condition()
        self.pending: list[Any] = []
        self.running: Any = None
        self.history: dict[str, Any] = {}
        self.flags: dict[str, bool] = {}
        self.interrupted = threading.Event()
        self.number = itertools.count()
        self.executed: list[dict[str, Any]] = []
        self.frees: list[dict[str, Any]] = []
        self.had_oom: set[str] = set()
        self.sockets: dict[str, WebSocket] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def say(self, client: str, kind: str, **data: Any) -> None:
        if (socket := self.sockets.get(client)) and self.loop:
            message = json.dumps({"type": kind, "data": data})
            asyncio.run_coroutine_threadsafe(self._send(socket, message), self.loop).result(5)

    @staticmethod
    async def _send(socket: WebSocket, message: str) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_text(message)

    def work(self) -> None:
        while True:
            with self.lock:
                while not self.pending:
                    self.lock.wait(1)
                    self.flags.clear()
                item = self.running = heapq.heappop(self.pending)
            self.interrupted.clear()
            _, prompt_id, prompt, _, client = item
            entry = {"prompt_id": prompt_id, "begun": time.time(), "outcome": "running"}
            self.executed.append(entry)
            messages: list[Any] = [["execution_start", {"prompt_id": prompt_id}]]
            outputs: dict[str, Any] = {}
            try:
                for node, value in prompt.items():
                    self.say(client, "executing", node=node, prompt_id=prompt_id)
                    outputs[node] = self.node(client, prompt_id, node, value["inputs"])
                status, entry["outcome"] = "success", "success"
                messages.append(["execution_success", {"prompt_id": prompt_id}])
            except PromptInterruptedError:
                status, entry["outcome"] = "error", "interrupted"
                messages.append(["execution_interrupted", {"prompt_id": prompt_id, "node_id": node}])
            except Exception as error:  # noqa: BLE001 - whatever a node raises
                status, entry["outcome"] = "error", "error"
                data = {
                    "prompt_id": prompt_id,
                    "node_id": node,
                    "node_type": "Fake",
                    "exception_message": str(error),
                    "exception_type": "torch.OutOfMemoryError"
                    if isinstance(error, MemoryError)
                    else "RuntimeError",
                    "traceback": ["Traceback …\n"],
                }
                messages.append(["execution_error", data])
                self.say(client, "execution_error", **data)
            with self.lock:
                self.running = None
                self.history[prompt_id] = {
                    "prompt": list(item[:4]),
                    "outputs": outputs if status == "success" else {},
                    "status": {
                        "status_str": status,
                        "completed": status == "success",
                        "messages": messages,
                    },
                }
            self.say(client, "executing", node=None, prompt_id=prompt_id)

    def node(self, client: str, prompt_id: str, node: str, inputs: dict[str, Any]) -> dict[str, Any]:
        end, steps = time.monotonic() + float(inputs.get("seconds", 0)), 10
        for step in range(steps):
            if inputs.get("die") and step == steps // 2:
                os._exit(9)
            self.say(client, "progress", value=step, max=steps, prompt_id=prompt_id, node=node)
            left = (end - time.monotonic()) / (steps - step)
            if left > 0 and self.interrupted.wait(left):
                if not inputs.get("hang"):
                    raise PromptInterruptedError
                time.sleep(float(inputs["hang"]))
                raise PromptInterruptedError
        if inputs.get("fail"):
            raise RuntimeError(inputs["fail"])
        if inputs.get("oom") == "always" or (inputs.get("oom") == "once" and prompt_id not in self.had_oom):
            self.had_oom.add(prompt_id)
            raise MemoryError("Allocation on device")
        files = []
        for number in range(int(inputs.get("count", 1))):
            name = f"{inputs['filename_prefix']}_{number:05}_.png"
            path = self.folder / "output" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if "input" in inputs:
                content = (self.folder / "input" / inputs["input"]).read_bytes()
            else:
                content = str(inputs.get("text", "")).encode()
            path.write_bytes(content)
            if inputs.get("vanish"):
                path.unlink()
            subfolder, _, plain = name.rpartition("/")
            files.append({"filename": plain, "subfolder": subfolder, "type": "output"})
        return {"images": files}


def application(engine: Engine) -> Starlette:  # noqa: C901, PLR0915 - one small function a route
    async def get_prompt(_: Request) -> Response:
        left = len(engine.pending) + (engine.running is not None)
        return JSONResponse({"exec_info": {"queue_remaining": left}})

    async def post_prompt(request: Request) -> Response:
        body = await request.json()
        wrong = {
            node: {
                "class_type": value["class_type"],
                "errors": [{"message": "Value not in list", "details": f"no {value['class_type']}"}],
            }
            for node, value in body["prompt"].items()
            if value["class_type"] != "Fake"
        }
        if wrong:
            error = {
                "type": "prompt_outputs_failed_validation",
                "message": "Prompt outputs failed validation",
            }
            return JSONResponse({"error": error, "node_errors": wrong}, status_code=400)
        with engine.lock:
            number = next(engine.number)
            item = (number, body["prompt_id"], body["prompt"], body.get("extra_data", {}), body["client_id"])
            heapq.heappush(engine.pending, item)
            engine.lock.notify()
        return JSONResponse({"prompt_id": body["prompt_id"], "number": number, "node_errors": {}})

    async def get_queue(_: Request) -> Response:
        with engine.lock:
            running = [list(engine.running[:4])] if engine.running else []
            return JSONResponse(
                {"queue_running": running, "queue_pending": [list(i[:4]) for i in engine.pending]}
            )

    async def post_queue(request: Request) -> Response:
        gone = (await request.json()).get("delete", [])
        with engine.lock:
            engine.pending = [item for item in engine.pending if item[1] not in gone]
            heapq.heapify(engine.pending)
        return Response()

    async def get_history(request: Request) -> Response:
        wanted = request.path_params["prompt_id"]
        with engine.lock:
            return JSONResponse({wanted: engine.history[wanted]} if wanted in engine.history else {})

    async def post_history(request: Request) -> Response:
        for one in (await request.json()).get("delete", []):
            engine.history.pop(one, None)
        return Response()

    async def interrupt(request: Request) -> Response:
        wanted = (await request.json()).get("prompt_id")
        if engine.running and engine.running[1] == wanted:
            engine.interrupted.set()
        return Response()

    async def free(request: Request) -> Response:
        engine.frees.append(await request.json())
        return Response()

    async def view(request: Request) -> Response:
        asked = request.query_params
        path = engine.folder / asked["type"] / asked.get("subfolder", "") / asked["filename"]
        return FileResponse(path, media_type="image/png") if path.is_file() else Response(status_code=404)

    async def upload(request: Request) -> Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + await request.body(), policy=email.policy.HTTP)
        fields: dict[str, Any] = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            fields[name] = (part.get_filename(), part.get_payload(decode=True))
        subfolder = fields["subfolder"][1].decode()
        name, content = fields["image"]
        (engine.folder / "input" / subfolder).mkdir(parents=True, exist_ok=True)
        (engine.folder / "input" / subfolder / name).write_bytes(content)
        return JSONResponse({"name": name, "subfolder": subfolder, "type": "input"})

    async def stats(_: Request) -> Response:
        device = {"name": "fake", "vram_total": 1000, "vram_free": 400}
        return JSONResponse({"system": {"comfyui_version": "0.0"}, "devices": [device]})

    async def fake(_: Request) -> Response:
        return JSONResponse({"executed": engine.executed, "frees": engine.frees})

    async def socket(connection: WebSocket) -> None:
        await connection.accept()
        client = connection.query_params["clientId"]
        engine.sockets[client] = connection
        try:
            while True:
                await connection.receive_text()
        except WebSocketDisconnect:
            if engine.sockets.get(client) is connection:
                del engine.sockets[client]

    @asynccontextmanager
    async def life(_: Starlette) -> Any:
        engine.loop = asyncio.get_running_loop()
        threading.Thread(target=engine.work, daemon=True).start()
        yield

    return Starlette(
        lifespan=life,
        routes=[
            Route("/prompt", get_prompt),
            Route("/prompt", post_prompt, methods=["POST"]),
            Route("/queue", get_queue),
            Route("/queue", post_queue, methods=["POST"]),
            Route("/history/{prompt_id}", get_history),
            Route("/history", post_history, methods=["POST"]),
            Route("/interrupt", interrupt, methods=["POST"]),
            Route("/free", free, methods=["POST"]),
            Route("/view", view),
            Route("/upload/image", upload, methods=["POST"]),
            Route("/system_stats", stats),
            Route("/models", lambda _: JSONResponse(["checkpoints", "vae"])),
            Route("/models/checkpoints", lambda _: JSONResponse(["a.safetensors", "b.safetensors"])),
            Route("/models/vae", lambda _: JSONResponse([])),
            Route("/fake", fake),
            WebSocketRoute("/ws", socket),
        ],
    )


def main(port: str, folder: str) -> None:
    uvicorn.run(
        application(Engine(Path(folder))),
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
        timeout_graceful_shutdown=0,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
