"""Putting another image into a running deployment's place, and back: one class for each way it was started."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgbuild import proc
from imgbuild.deploy.argv import run_argv
from imgbuild.deploy.compose import VARIABLE_LABEL, image_variable
from imgbuild.deploy.deployment import TARGET_LABEL, VALUE_LABEL, from_label, of_image
from imgbuild.errors import DeploymentError, EngineError
from imgbuild.locking import write_atomically

if TYPE_CHECKING:
    from imgbuild.deploy.containers import Container, Containers
    from imgbuild.deploy.deployment import Deployment
    from imgbuild.deploy.ledger import Ledger

_PROJECT = "com.docker.compose.project"
_COMPOSING = 900.0


class Switch(Protocol):
    @property
    def container(self) -> str:
        """The name of the one that serves, now and after a replacement."""

    @property
    def url(self) -> str: ...

    def recover(self) -> str | None:
        """Undo what an interrupted update left; what was done, in words."""

    def replace(self, image: str) -> None: ...

    def undo(self) -> None:
        """The one before `replace`, started again."""

    def settle(self) -> None:
        """Nothing of the one before is needed any more."""


@dataclass
class RunSwitch:
    """Of a container that `imgbuild run --detach` started. The old one is kept, stopped, until the new one serves."""

    containers: Containers
    ledger: Ledger
    found: Container
    deployment: Deployment
    rootless: bool

    @property
    def container(self) -> str:
        return self.deployment.name

    @property
    def url(self) -> str:
        return self.deployment.url

    @property
    def _before(self) -> str:
        return f"{self.container}-before"

    @property
    def _next(self) -> str:
        return f"{self.container}-next"

    def recover(self) -> str | None:
        if self.containers.container(self._next) is not None:
            self.containers.remove(self._next)
        if self.containers.container(self._before) is None:
            return None
        if self.containers.execute(self.container, "comfyrun", "health", "--ready").returncode == 0:
            self.settle()
            return None
        self.undo()
        return f"an update was interrupted: {self.container} is the one before it again"

    def replace(self, image: str) -> None:
        d = of_image(self.deployment, image)
        labels = self.ledger.label_file(self.containers.engine.name, d.name)
        write_atomically(labels, f"{VALUE_LABEL}={d.as_label()}\n")
        argv = run_argv(
            d,
            self.containers.name,
            mode="created",
            limits=self.containers.engine.limits,
            rootless=self.rootless,
            label_file=labels,
            name=self._next,
        )
        # Values that stand in no label: what the running one has.
        kept = {
            name: self.found.environment[name]
            for name, value in d.environment.items()
            if value is None and name in self.found.environment
        }
        self.containers.call(
            *argv[1:], env=kept
        )  # before anything is stopped: what cannot be made breaks nothing
        self.containers.stop(self.container)
        self.containers.rename(self.container, self._before)
        self.containers.rename(self._next, self.container)
        self.containers.start(self.container)

    def undo(self) -> None:
        if self.containers.container(self._next) is not None:
            self.containers.remove(self._next)
        if self.containers.container(self._before) is not None:
            if self.containers.container(self.container) is not None:
                self.containers.remove(self.container)
            self.containers.rename(self._before, self.container)
        self.containers.start(self.container)

    def settle(self) -> None:
        self.containers.remove(self._before)


@dataclass
class ComposeSwitch:
    """Of a service of compose/: its image is a line of .env, so that `docker compose up` goes on with the same."""

    containers: Containers
    found: Container
    target: str
    _old: bytes | None = None
    _changed: bool = False

    @property
    def container(self) -> str:
        return self.found.name

    @property
    def url(self) -> str:
        address = self.found.labels.get(f"{VARIABLE_LABEL}COMFYUI_ADDRESS") or "127.0.0.1"
        reached = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104
        return f"http://{reached}:{self.found.labels.get(f'{VARIABLE_LABEL}COMFYUI_PORT') or 8188}"

    @property
    def env_file(self) -> Path:
        own = self.found.labels.get(f"{_PROJECT}.environment_file")
        return Path(own.split(",")[-1]) if own else Path(self._folder, ".env")

    @property
    def _folder(self) -> str:
        return self.found.labels[f"{_PROJECT}.working_dir"]

    def recover(self) -> str | None:
        return None

    def replace(self, image: str) -> None:
        self._old = self.env_file.read_bytes() if self.env_file.is_file() else None
        text = (self._old or b"").decode()
        _write_as_it_was(self.env_file, with_variable(text, image_variable(self.target), image))
        self._changed = True
        self._up()

    def undo(self) -> None:
        if self._changed and self._old is None:
            self.env_file.unlink(missing_ok=True)
        elif self._changed and self._old is not None:
            _write_as_it_was(self.env_file, self._old.decode())
        self._changed = False
        self._up()

    def settle(self) -> None:
        """compose has removed it."""

    def _up(self) -> None:
        labels = self.found.labels
        argv = [*self.containers.engine.command, "compose", "--project-name", labels[_PROJECT]]
        argv += ["--project-directory", self._folder]
        for path in labels[f"{_PROJECT}.config_files"].split(","):
            argv += ["--file", path]
        if f"{_PROJECT}.environment_file" in labels:
            argv += ["--env-file", str(self.env_file)]
        argv += [
            "up",
            "--detach",
            "--no-deps",
            "--no-build",
            "--pull",
            "never",
            labels["com.docker.compose.service"],
        ]
        # What it was started with, and not what this shell says of the image.
        own = {
            k.removeprefix(VARIABLE_LABEL): v for k, v in labels.items() if k.startswith(VARIABLE_LABEL) and v
        }
        env = {k: v for k, v in {**self.containers.env, **own}.items() if k != image_variable(self.target)}
        done = proc.run(argv, env=env, check=False, timeout=_COMPOSING)
        if done.returncode:
            raise EngineError(f"docker compose up: {done.stderr.strip()[-600:]}")


def find_switch(containers: Containers, ledger: Ledger, found: Container) -> Switch:
    """Raises DeploymentError for a container that nobody can put another image into."""
    if f"{_PROJECT}.config_files" in found.labels:
        target = found.labels.get(TARGET_LABEL, "")
        return ComposeSwitch(containers=containers, found=found, target=target)
    value = found.labels.get(VALUE_LABEL)
    if value is None:
        raise DeploymentError(
            f"{found.name} was not started by imgbuild run --detach or a file of compose/",
            hint=f"stop it, and start it again: {containers.name} stop {found.name}; imgbuild run --detach …",
        )
    return RunSwitch(
        containers=containers,
        ledger=ledger,
        found=found,
        deployment=from_label(value),
        rootless=os.geteuid() != 0,
    )


def with_variable(text: str, name: str, value: str) -> str:
    """A .env file with one variable set, and everything else as it was."""
    lines = text.splitlines()
    kept = [line for line in lines if line.split("=", 1)[0].strip() != name]
    return "\n".join([*kept, f"{name}={value}"]) + "\n"


def _write_as_it_was(path: Path, text: str) -> None:
    """Whole or not at all, with the permissions it has: a .env may hold what nobody else should read."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
