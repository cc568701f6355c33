"""What the queue's measurements run on: a Redis of their own, ComfyUI in containers, agents beside them or inside."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
ENTRYPOINT = ROOT / "entrypoint"
sys.path.insert(0, str(ENTRYPOINT))

NODE = '''
import time
import torch

class BenchWork:
    """Takes `seconds`: sleeping, as a GPU leaves the CPU alone, or computing on one thread."""
    CATEGORY, FUNCTION, RETURN_TYPES = "bench", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 1e6}), "seed": ("INT", {"max": 2**62}),
                             "compute": ("BOOLEAN", {"default": False})}}

    def run(self, seconds, seed, compute):
        if compute:
            torch.set_num_threads(1)
            a = torch.ones(256, 256)
            for _ in range(int(seconds * 2000)):
                a = (a @ a).clamp(0, 1)
        else:
            time.sleep(seconds)
        shade = (seed % 251) / 251
        return (torch.full((1, 64, 64, 3), shade),)

NODE_CLASS_MAPPINGS = {"BenchWork": BenchWork}
'''


def workflow(seconds: float, seed: int, *, compute: bool = False) -> dict[str, Any]:
    return {
        "1": {"class_type": "BenchWork", "inputs": {"seconds": seconds, "seed": seed, "compute": compute}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    }


def tiny(seed: int) -> dict[str, Any]:
    """A real picture of ComfyUI's own nodes, in milliseconds; its colour is the seed's."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": seed % 0xFFFFFF},
        },
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "tiny"}},
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(seen: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while True:
        if found := seen():
            return found
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


@dataclass
class Redis:
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Redis:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        words += ["--appendonly", "yes", "--save", "", "--logfile", str(self.folder / "log")]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.answers, 60, "redis-server answers")
        return self

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Comfy:
    """ComfyUI alone, in a container."""

    image: str
    folder: Path
    name: str = field(default_factory=lambda: f"queuelab-{secrets.token_hex(4)}")
    port: int = field(default_factory=free_port)

    def start(self) -> Comfy:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output.mkdir(exist_ok=True)
        self.output.chmod(0o777)
        node = self.folder / "bench_work.py"
        node.write_text(NODE)
        docker(
            "run", "-d", "--name", self.name, "-p", f"127.0.0.1:{self.port}:8188",
            "-v", f"{node}:/data/custom_nodes/bench_work.py:ro", "-v", f"{self.output}:/data/output", self.image,
        )  # fmt: skip
        return self

    def start_worker(self, environ: dict[str, str], lab: Path) -> Comfy:
        """With its agent, of this tree, inside. On the host's network, where Redis is."""
        known = {name: environ[name] for name in environ if name.startswith(("REDIS_", "WORKER_", "QUEUE_"))}
        known |= {"COMFY_PORT": str(self.port), "OUTPUTS_PATH": "/outputs", "INPUTS_PATH": "/inputs"}
        docker(
            "run", "-d", "--restart", "on-failure", "--name", self.name, "--network", "host",
            *(part for name, value in known.items() for part in ("-e", f"{name}={value}")),
            "-v", f"{lab / 'outputs'}:/outputs", "-v", f"{lab / 'inputs'}:/inputs",
            "-v", f"{ENTRYPOINT / 'comfywork'}:/opt/comfyrun/comfywork:ro", self.image, "worker",
        )  # fmt: skip
        return self

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return "exec_info" in ask(f"http://127.0.0.1:{self.port}/prompt")
        return False

    def kill(self) -> None:
        docker("kill", self.name)

    def again(self) -> None:
        docker("start", self.name)

    def remove(self) -> None:
        docker("rm", "-f", "-v", self.name)


@dataclass
class Agent:
    """`comfywork agent` on this machine, beside a ComfyUI."""

    id: str
    environ: dict[str, str]
    log: Path
    words: tuple[str, ...] = ("-m", "comfywork", "agent")
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Agent:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.words], env=self.environ, stdout=log, stderr=log
            )
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)


def environ(lab: Path, server: Redis, comfy_port: int, worker: str, **more: str) -> dict[str, str]:
    for name in ("outputs", "inputs"):
        (lab / name).mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ENTRYPOINT),
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(server.port),
        "WORKER_ID": worker,
        "COMFYWORK_SERVER": f"http://127.0.0.1:{comfy_port}",
        "COMFYWORK_STATE": str(lab / worker / "agent.json"),
        "OUTPUTS_PATH": str(lab / "outputs"),
        "INPUTS_PATH": str(lab / "inputs"),
        **more,
    }


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"docker {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def ask(address: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@contextlib.contextmanager
def removed(*things: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            with contextlib.suppress(Exception):
                (thing.remove if hasattr(thing, "remove") else thing.kill)()
