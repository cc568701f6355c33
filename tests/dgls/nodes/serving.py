"""A ComfyUI server of one tree, on the CPU, with the nodes under test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from comfyclient import ComfyClient, Result, Workflow

HERE = Path(__file__).resolve().parent
# Threads that wait for each other by spinning take minutes on a machine that has other work.
QUIET = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
NODES = Path(os.environ.get("IMGBUILD_DGLS_NODES") or HERE.parents[2] / "nodes")


@dataclass(kw_only=True)
class Server:
    tree: Path
    folder: Path
    models: Path
    custom_nodes: tuple[Path, ...] = (NODES, HERE / "custom")
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    seconds_to_ready: float = 0.0

    def __enter__(self) -> Self:
        for name in ("base", "base/custom_nodes", "user"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        sections = [
            f"nodes{i}:\n  base_path: {path.parent}\n  custom_nodes: {path.name}/\n"
            for i, path in enumerate(self.custom_nodes)
        ]
        models = (
            f"models:\n  base_path: {self.models}\n  diffusion_models: diffusion_models/\n  loras: loras/\n"
        )
        extra = self.folder / "extra.yaml"
        extra.write_text("".join([models, *sections]))
        self.port = free_port()
        command = [sys.executable, "-u", str(self.tree / "main.py"), "--cpu", "--port", str(self.port)]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--disable-metadata"]
        command += [
            "--base-directory",
            str(self.folder / "base"),
            "--user-directory",
            str(self.folder / "user"),
        ]
        command += ["--extra-model-paths-config", str(extra)]
        command += ["--database-url", f"sqlite:///{self.folder / 'user' / 'comfyui.db'}"]
        begin = time.monotonic()
        log = (self.folder / "log").open("wb")
        with log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | self.environ,
                cwd=self.folder,
            )
        while True:
            try:
                self.client.get_json("/prompt")
                break
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() - begin > 300:
                    self.__exit__()
                    raise AssertionError(f"the server does not start:\n{self.log()}") from None
                time.sleep(0.2)
        self.seconds_to_ready = time.monotonic() - begin
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def client(self) -> ComfyClient:
        return ComfyClient(f"http://127.0.0.1:{self.port}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def latent(self, result: Result) -> Any:
        """The tensor that the workflow's SaveLatent wrote."""
        from safetensors.torch import load_file

        (found,) = [each for output in result.outputs.values() for each in output.get("latents", ())]
        path = self.folder / "base" / "output" / found["subfolder"] / found["filename"]
        return load_file(path)["latent_tensor"]

    def sample(self, workflow: Workflow, timeout: float = 300) -> Any:
        return self.latent(self.client.run(workflow, timeout))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
