"""compose/workers.yaml with a real engine, a real Redis and the cpu image."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from kit import ROOT
from redisimage import redis_image
from scratch import tool_argv, tool_env
from served import IMAGE, docker, free_port

TENANT = "user001"


class Workshop:
    """A queue's machine and a worker, in one compose project."""

    def __init__(self, folder: Path, redis: str, **more: str) -> None:
        self.folder, self.name = folder, f"imgbuild-test-{secrets.token_hex(4)}"
        self.files = folder / "compose"
        self.api = free_port()
        self.dashboard = free_port()
        self.settings = {
            "COMPOSE_PROJECT_NAME": self.name,
            "REDIS_IMAGE": redis,
            "WORKER_IMAGE": IMAGE,
            "API_IMAGE": IMAGE,
            "QUEUE_PORT": str(free_port()),
            "API_PORT": str(self.api),
            "DASHBOARD_PORT": str(self.dashboard),
            "WORKER_HEARTBEAT_TIMEOUT": "10",
            "WORKER_DRAIN_TIMEOUT": "10",
            "WORKER_STOP_GRACE": "30s",
            **more,
        }
        folders = {"MODELS_PATH": "models", "OUTPUTS_PATH": "outputs", "INPUTS_PATH": "inputs"}
        folders |= {"WORKFLOWS_PATH": "workflows", "COMFYUI_DATA": "data", "COMFYUI_CACHE": "cache"}
        folders |= {"QUEUE_DATA": "queue", "FRONT_DATA": "front", "FRONT_CACHE": "front-cache"}
        for variable, name in folders.items():
            (folder / name).mkdir()
            os.chown(folder / name, 999 if name == "queue" else 1000, 1000)
            self.settings[variable] = str(folder / name)

    def prepare(self) -> None:
        for above in (self.folder, *self.folder.parents):
            if above != Path("/tmp") and above.is_relative_to("/tmp"):
                above.chmod(above.stat().st_mode | 0o011)
        argv = tool_argv("--project", ROOT, "compose", "workers", "-o", str(self.files))
        done = subprocess.run(argv, env=tool_env(None), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (self.files / ".env").write_text("".join(f"{n}={v}\n" for n, v in self.settings.items()))
        for name in ("secrets", "tenants"):
            (self.files / name).mkdir()
            os.chown(self.files / name, 1000, 1000)
        self.secret("redis-password", "correct-horse-42")
        self.secret("dashboard-password", "dash-board-42")

    def secret(self, name: str, text: str) -> None:
        path = self.files / "secrets" / name
        path.write_text(text)
        os.chown(path, 1000, 1000)
        path.chmod(0o440)

    def compose(self, *words: str, check: bool = True, stdin: str | None = None) -> str:
        argv = ["docker", "compose", "-f", str(self.files / "workers.yaml")]
        argv += ["-f", str(self.files / "workers-cpu.yaml"), *words]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=600, input=stdin, cwd=self.files
        )
        assert not check or done.returncode == 0, done.stderr[-3000:] + self.logs()
        return done.stdout if check else done.stdout + done.stderr

    def up(self, *profiles: str) -> None:
        words = [word for profile in profiles for word in ("--profile", profile)]
        self.compose(*words, "up", "--detach", "--wait")

    def logs(self, *services: str) -> str:
        argv = ["docker", "compose", "-f", str(self.files / "workers.yaml"), "--profile", "*"]
        argv += ["logs", "--no-color", "--tail", "60", *services]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=self.files)
        return done.stdout + done.stderr

    def token(self) -> str:
        words = ("--profile", "queue", "run", "--rm", "-T", "--no-deps", "api", "api", "token", TENANT)
        return self.compose(*words).split()[-1]

    def container(self, service: str) -> str:
        return f"{self.name}-{service}-1"

    def submit(self, workflow: object, *words: str) -> str:
        """In the api's container, which has the password."""
        argv = ("exec", "-i", self.container("api"), "comfyrun", "submit", "--tenant", TENANT, *words, "-")
        done = docker(*argv, stdin=json.dumps(workflow))
        assert done.returncode == 0, done.stderr + self.logs("worker-1")
        return done.stdout

    def python(self, service: str, code: str) -> str:
        argv = ("exec", "-i", self.container(service), "/opt/work/bin/python", "-I", "-")
        return docker(*argv, stdin=code).stdout

    def ask(self, path: str, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.api}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def clean(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)


def needed(client: Any, folder: Path) -> str:
    """Redis' image; skips where something is missing."""
    label = '{{index .Config.Labels "imgbuild.work"}}'
    if docker("image", "inspect", IMAGE).returncode:
        pytest.skip(f"no image {IMAGE}: imgbuild build --target cpu")
    if "rq=" not in docker("image", "inspect", "--format", label, IMAGE).stdout:
        pytest.skip(f"{IMAGE} has no /opt/work: build it again")
    if docker("compose", "version").returncode:
        pytest.skip("no docker compose: imgbuild doctor --fix")
    return redis_image(client, folder)
