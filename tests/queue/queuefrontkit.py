"""A whole queue with fronts: real Redis, the API, workers (ComfyUI's container and the agent), and ComfyUI as front."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any, Self

import httpx
import pytest
import redis
from websockets.sync.client import ClientConnection, connect

from comfywork.api.tokens import make
from comfywork.broker import Broker
from comfywork.views import JobView

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
IMAGE = os.environ.get("IMGBUILD_FRONT_IMAGE", "comfyui:cpu")
OTHER_TREE, OTHER_PACKAGES = (os.environ.get(f"IMGBUILD_FRONT_{name}", "") for name in ("TREE", "PACKAGES"))
"""Of another ComfyUI than the image's, and a folder with what it needs beside the image's packages."""
PASSWORD = "a password"
TENANTS = ("user001", "user002")
ENDS = ("execution_success", "execution_error", "execution_interrupted")
_STARTED = 180.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(what: Any, seconds: float = 30.0, every: float = 0.05) -> Any:
    """What it gives, as soon as that is true."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(every)


@dataclasses.dataclass
class Server:
    """A process of this test's own, and what it says."""

    name: str
    command: list[str]
    environ: dict[str, str]
    log: list[str] = dataclasses.field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            self.log.extend(stream)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Comfy:
    """ComfyUI in a container of the cpu image, in the host's network."""

    def __init__(
        self, name: str, folder: Path, environ: dict[str, str], arguments: tuple[str, ...] = ()
    ) -> None:
        self.name = f"imgbuild-{name}-{uuid.uuid4().hex[:8]}"
        self.folder, self.environ, self.arguments = folder, environ, arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for part in ("input", "output", "user", "models/checkpoints", "custom_nodes"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def start(self, *, wait: bool = True) -> None:
        words = ["docker", "run", "--detach", "--name", self.name, "--network", "host"]
        words += ["--user", f"{os.getuid()}:{os.getgid()}", "--volume", f"{self.folder}:/data"]
        words += ["--volume", f"{ROOT / 'nodes' / 'queuefront'}:/opt/nodes/queuefront:ro"]
        words += ["--volume", f"{ROOT / 'entrypoint' / 'comfyrun'}:/opt/comfyrun/comfyrun:ro"]
        words += ["--volume", f"{HERE / 'frontnodes'}:/data/custom_nodes/frontnodes:ro"]
        for name, value in self.environ.items():
            words += ["--env", f"{name}={value}"]
        own = ["--listen", "127.0.0.1", "--port", str(self.port)]
        words += self._another_comfyui(own) if OTHER_TREE else [IMAGE, *self.arguments, *own]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if wait:
            self.ready()

    def _another_comfyui(self, own: list[str]) -> list[str]:
        """A tree of another version, which comfyrun of this image has not looked at: as comfyrun would start it."""
        words = ["--volume", f"{OTHER_TREE}:/other:ro", "--volume", f"{OTHER_PACKAGES}:/packages:ro"]
        words += ["--env", "PYTHONPATH=/packages", "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "HOME=/tmp"]
        if self.arguments:
            words += ["--env", "COMFY_QUEUE_FRONT=1", "--env", f"COMFY_QUEUE_TENANT={self.arguments[-1]}"]
        words += ["--entrypoint", "/opt/venv/bin/python", IMAGE, "/other/main.py", "--cpu", *own]
        words += ["--base-directory", "/data", "--database-url", "sqlite:////data/user/comfyui.db"]
        return [*words, "--extra-model-paths-config", "/etc/comfyrun/extra_model_paths.yaml"]

    def ready(self) -> None:
        def answers() -> bool:
            assert self.running(), self.log()
            with contextlib.suppress(httpx.HTTPError):
                return "exec_info" in httpx.get(f"{self.url}/prompt", timeout=5).json()
            return False

        until(answers, _STARTED, 0.3)

    def running(self) -> bool:
        done = subprocess.run(
            ["docker", "inspect", "--format", "{{.State.Running}}", self.name],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() == "true"

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def exit_code(self) -> int:
        done = subprocess.run(
            ["docker", "wait", self.name], capture_output=True, text=True, timeout=60, check=True
        )
        return int(done.stdout)

    def kill(self) -> None:
        subprocess.run(["docker", "kill", self.name], capture_output=True, check=False)

    def again(self, *, wait: bool = True) -> None:
        subprocess.run(["docker", "start", self.name], capture_output=True, check=True)
        if wait:
            self.ready()

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True, check=False)

    def get(self, path: str, **more: Any) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30, **more).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)


class Browser:
    """What ComfyUI's frontend does: a websocket with a client id, and Queue Prompt under it."""

    def __init__(self, comfy: Comfy, client: str = "") -> None:
        self.comfy, self.client = comfy, client or uuid.uuid4().hex
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        where = f"{self.comfy.url.replace('http', 'ws')}/ws?clientId={self.client}"
        self._socket: ClientConnection = self._stack.enter_context(
            connect(where, max_size=1 << 26, proxy=None)
        )
        self._socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self) -> None:
        with contextlib.suppress(Exception):
            for message in self._socket:
                if isinstance(message, str):
                    found = json.loads(message)
                    self.events.append((found["type"], found["data"]))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def queue(self, graph: dict[str, Any], code: int = 200, **more: Any) -> Any:
        body = {"prompt": graph, "client_id": self.client, **more}
        body.setdefault("extra_data", {"extra_pnginfo": {"workflow": {"id": "as drawn", "nodes": []}}})
        answer = self.comfy.post("/prompt", body)
        assert answer.status_code == code, answer.text
        return answer.json() if code != 200 else answer.json()["prompt_id"]

    def of(self, job: str) -> list[tuple[str, dict[str, Any]]]:
        return [(kind, data) for kind, data in self.events if data.get("prompt_id") == job]

    def end(self, job: str, seconds: float = 60.0) -> tuple[str, dict[str, Any]]:
        """The last event of it."""

        def over() -> Any:
            found = self.of(job)
            return found if any(k == "executing" and d["node"] is None for k, d in found) else None

        events = until(over, seconds)
        return next((kind, data) for kind, data in reversed(events) if kind in ENDS)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self.redis_port, self.api_port = free_port(), free_port()
        for name in ("redis", "output", "input", "state"):
            (folder / name).mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "entrypoint"),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis_port),
            "REDIS_PASSWORD": PASSWORD,
            "OUTPUTS_PATH": str(folder / "output"),
            "INPUTS_PATH": str(folder / "input"),
            "WORKER_HEARTBEAT_TIMEOUT": "4",
            "WORKER_POLL_INTERVAL": "1",
            "TOKENS_FILE": str(folder / "tokens.yaml"),
        }
        self.tokens = {tenant: make(folder / "tokens.yaml", tenant, {}) for tenant in TENANTS}
        redis_server = shutil.which("redis-server") or pytest.skip("redis-server is not installed")
        self.redis = Server(
            "redis",
            [redis_server, "--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(folder / "redis"),
             "--save", "", "--requirepass", PASSWORD],
            dict(os.environ),
        )  # fmt: skip
        self.api = Server(
            "api",
            [sys.executable, "-m", "comfywork", "api", "--listen", f"127.0.0.1:{self.api_port}"],
            self.environ,
        )
        self.agents: dict[str, Server] = {}
        self.comfys: dict[str, Comfy] = {}

    def start(self) -> None:
        self.redis.start()
        self._stack.callback(self.redis.stop)
        client = redis.Redis(port=self.redis_port, password=PASSWORD)

        def up() -> bool:
            with contextlib.suppress(redis.RedisError):
                return bool(client.ping())
            return False

        until(up)
        self.broker = Broker.of_environment(self.environ)
        self.start_api()
        self._stack.callback(self.api.stop)

    def start_api(self) -> None:
        self.api.start()
        until(
            lambda: any(re.search(r"is the queue's page", line) for line in self.api.log) and self._answers(),
            30,
        )

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.api_port}/health", timeout=2).status_code == 200
        return False

    def worker(self, name: str) -> None:
        """Its ComfyUI now, its agent when there is work for it: `agent`."""
        comfy = Comfy(name, self.folder / name, {"COMFY_QUEUE_WORKER": "1"})
        self.comfys[name] = comfy
        self._stack.callback(comfy.remove)
        comfy.start(wait=False)

    def agent(self, name: str) -> Server:
        comfy = self.comfys[name]
        comfy.ready()
        environ = {
            **self.environ,
            "WORKER_ID": name,
            "COMFYWORK_SERVER": comfy.url,
            "COMFYWORK_STATE": str(self.folder / "state" / f"{name}.json"),
            "COMFYWORK_INPUT": str(comfy.folder / "input"),
            "COMFYWORK_OUTPUT": str(comfy.folder / "output"),
        }
        agent = self.agents[name] = Server(name, [sys.executable, "-m", "comfywork", "agent"], environ)
        agent.start()

        def registered() -> bool:
            assert agent.process is not None
            assert agent.process.poll() is None, "".join(agent.log)
            return any(worker.id == name for worker in self.broker.workers())

        until(registered, 120)
        return agent

    def front(self, tenant: str, name: str = "", token: str = "") -> Comfy:
        name = name or tenant
        environ = {
            "COMFYWORK_API": f"http://127.0.0.1:{self.api_port}",
            "COMFYWORK_TOKEN": token or self.tokens[tenant],
        }
        comfy = Comfy(name, self.folder / f"front-{name}", environ, ("front", "--tenant", tenant))
        self.comfys[name] = comfy
        self._stack.callback(comfy.remove)
        return comfy

    def job(self, job: str) -> JobView:
        return self.broker.status(job)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.stop()
        self._stack.close()


def picture(prefix: str = "made", seed: int = 0, steps: int = 3, seconds: float = 0.2) -> dict[str, Any]:
    return {
        "1": {"class_type": "TestSlow", "inputs": {"steps": steps, "seconds": seconds, "seed": seed}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }
