"""Containers and images of an engine, by the words that docker and podman share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.deploy.argv import EngineName, must_be
from imgbuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.engines import Engine

_SOON = 60.0
_STOPPING = 900.0
"""Seconds: a stop may take as long as the deployment's grace."""


@dataclass(frozen=True, kw_only=True)
class LocalImage:
    id: str
    tags: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Container:
    name: str
    status: str
    exit_code: int
    restarts: int
    image: str
    """As it was named when the container was made."""
    image_id: str
    labels: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)

    @property
    def runs(self) -> bool:
        return self.status == "running"


@dataclass(frozen=True)
class Containers:
    engine: Engine
    env: Mapping[str, str]

    @property
    def name(self) -> EngineName:
        return must_be(self.engine.name)

    def call(
        self, *words: str, check: bool = True, timeout: float = _SOON, env: Mapping[str, str] | None = None
    ) -> proc.Result:
        """One verb. Raises EngineError with what the engine said."""
        argv = [*self.engine.command, *words]
        done = proc.run(argv, env={**self.env, **(env or {})}, check=False, timeout=timeout)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise EngineError(
                f"{self.engine.name} {words[0]}: {said}", hint=f"the engine: {self.engine.name} info"
            )
        return done

    def image(self, reference: str) -> LocalImage | None:
        """What the engine has under this name, without asking a registry."""
        done = self.call("image", "inspect", reference, check=False)
        if done.returncode:
            return None
        found: Any = json.loads(done.stdout)[0]
        labels = (found.get("Config") or {}).get("Labels") or found.get("Labels") or {}
        digest = str(found["Id"])
        return LocalImage(
            id=digest if ":" in digest else f"sha256:{digest}",
            tags=tuple(found.get("RepoTags") or ()),
            labels=dict(labels),
        )

    def full_name(self, reference: str) -> str:
        """A short name as the engine keeps it: Podman has localhost/… of a build and docker.io/library/… of Docker's."""
        image = self.image(reference)
        tags = image.tags if image else ()
        return next((tag for tag in tags if tag.endswith(f"/{reference}")), reference)

    def container(self, name: str) -> Container | None:
        done = self.call("container", "inspect", name, check=False)
        if done.returncode:
            return None
        found: Any = json.loads(done.stdout)[0]
        config, state = found["Config"], found["State"]
        image_id = str(found["Image"])
        environment = (text.partition("=") for text in config.get("Env") or ())
        return Container(
            name=str(found["Name"]).lstrip("/"),
            status=str(state["Status"]),
            exit_code=int(state.get("ExitCode") or 0),
            restarts=int(found.get("RestartCount") or 0),
            image=str(found.get("ImageName") or config.get("Image") or ""),
            image_id=image_id if ":" in image_id else f"sha256:{image_id}",
            labels=dict(config.get("Labels") or {}),
            environment={name: value for name, _, value in environment},
        )

    def labelled(self, *labels: str) -> tuple[Container, ...]:
        """All with these labels (NAME or NAME=VALUE), those that do not run among them."""
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        listed = self.call("ps", "--all", "--quiet", *filters).stdout.split()
        found = (self.container(one) for one in listed)
        return tuple(sorted((c for c in found if c is not None), key=lambda c: c.name))

    def publishing(self, port: int) -> str | None:
        """The name of a container that has this port of the machine."""
        listed = self.call("ps", "--format", "{{.Names}}\t{{.Ports}}", check=False).stdout
        for line in listed.splitlines():
            name, _, ports = line.partition("\t")
            if f":{port}->" in ports:
                return name
        return None

    def log(self, name: str, lines: int = 15) -> str:
        done = self.call("logs", "--tail", str(lines), name, check=False)
        return (done.stdout + done.stderr).strip()

    def execute(self, name: str, *words: str, timeout: float = 30) -> proc.Result:
        return self.call("exec", name, *words, check=False, timeout=timeout)

    def stop(self, name: str) -> None:
        self.call("stop", name, timeout=_STOPPING)

    def start(self, name: str) -> None:
        self.call("start", name)

    def rename(self, old: str, new: str) -> None:
        self.call("rename", old, new)

    def remove(self, name: str) -> None:
        """Whether it runs or not; named volumes stay."""
        self.call("rm", "--force", name, timeout=_STOPPING)

    def tag(self, image: str, reference: str) -> None:
        self.call("tag", image, reference)

    def untag(self, reference: str) -> None:
        """Only the name, where the image has others; what still uses it keeps it."""
        # Podman's untag with one word only takes away every name that the image has.
        words = ("rmi", "--no-prune", reference) if self.name == "docker" else ("untag", reference, reference)
        self.call(*words, check=False)
