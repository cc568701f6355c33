"""A deployment of the cpu image for one test: names, ports, folders and volumes of its own, taken away afterwards."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit import ROOT

sys.path.append(str(ROOT / "tests" / "image"))

from comfyclient import ComfyClient
from scratch import tool_argv, tool_env

IMAGE = os.environ.get("IMGBUILD_IMAGE", "comfyui:cpu")
UID = 4321


def picture(color: int = 0xFF8800, name: str = "deployed") -> Any:
    """EmptyImage → SaveImage: no model, so a second at most."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": name}},
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Place:
    folder: Path
    name: str = field(default_factory=lambda: f"imgbuild-test-{secrets.token_hex(4)}")
    port: int = field(default_factory=free_port)
    engine: tuple[str, ...] = ("docker",)
    """The command of the engine that it runs in."""
    source: str = IMAGE

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def cache(self) -> str:
        return f"{self.name}-cache"

    @property
    def client(self) -> ComfyClient:
        return ComfyClient(f"http://127.0.0.1:{self.port}")

    @property
    def image(self) -> str:
        """A name of its own, so that the tags that an update makes are its own too."""
        return f"{self.name}:cpu"

    def prepare(self) -> None:
        self.call("tag", self.source, self.image)
        # The container's user has to reach it through every folder above.
        for folder in (self.folder, *self.folder.parents):
            if (
                folder.owner() == Path("/tmp").owner()
                and folder != Path("/tmp")
                and folder.is_relative_to("/tmp")
            ):
                folder.chmod(folder.stat().st_mode | 0o011)
        self.data.mkdir()
        os.chown(self.data, UID, UID)

    @property
    def options(self) -> list[str]:
        return [
            "--name",
            self.name,
            "--data",
            str(self.data),
            "--cache",
            self.cache,
            "--port",
            str(self.port),
            "--image",
            self.image,
        ]

    def call(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A verb of the engine."""
        return subprocess.run(
            [*self.engine, *words], capture_output=True, text=True, check=False, input=stdin, timeout=600
        )

    def tool(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        env = {**tool_env(None), "IMGBUILD_CACHE": str(self.folder / "cache")}
        argv = tool_argv("--project", ROOT, *words)
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=timeout)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        env = {**tool_env(None), "IMGBUILD_CACHE": str(self.folder / "cache")}
        argv = tool_argv("--project", ROOT, *words)
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def compose(
        self, *words: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = ["docker", "compose", "--file", str(self.folder / "compose" / "cpu.yaml"), *words]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, **(env or {})}
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def generate(self, color: int = 0xFF8800, name: str = "deployed") -> list[Path]:
        """Run a workflow; the files that it left on this machine."""
        result = self.client.run(picture(color, name))
        return [self.data / "output" / image.subfolder / image.filename for image in result.images]

    def inspect(self) -> Any:
        listed = self.call(
            "ps", "--all", "--quiet", "--filter", f"label=imgbuild.deployment={self.name}"
        ).stdout.split()
        return [json.loads(self.call("container", "inspect", one).stdout)[0] for one in listed]

    def clean(self) -> None:
        for found in self.inspect():
            self.call("rm", "--force", "--volumes", found["Id"])
        if (self.folder / "compose" / "cpu.yaml").is_file():
            self.compose("--profile", "proxy", "down", check=False)
        self.call("volume", "rm", "--force", self.cache)
        for tag in self.call("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split():
            if tag.removeprefix("localhost/").removeprefix("docker.io/library/").startswith(f"{self.name}:"):
                self.call("rmi", tag)  # of an image with other names: only this one


def docker(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *words], capture_output=True, text=True, check=False, input=stdin, timeout=600
    )
