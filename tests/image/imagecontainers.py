"""Containers of the image under test, through the `docker` or `podman` command: the same words for both.

The commands and not an SDK: Podman's socket is not there by default, and what a
test does can be repeated in a shell word by word.
"""

from __future__ import annotations

import io
import json
import secrets
import subprocess
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PORT = 8188
# How the documentation says that an image is run. exec: Triton loads what it compiled from a temporary folder.
STANDARD = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp:rw,exec,nosuid,nodev,mode=1777"),
)
GPU = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}


class EngineFailedError(Exception):
    """The engine's command ended with an error; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's command."""

    name: str
    """`docker` or `podman`."""
    command: tuple[str, ...]
    """With the words that this machine needs in front of every verb."""
    limits: tuple[str, ...] = ()
    """Options that this machine needs for every new container."""
    patience: float = 1
    """What a time limit is multiplied with: an emulated image needs it."""

    def call(
        self, *words: str, stdin: str | bytes | None = None, timeout: float = 120, check: bool = True
    ) -> Done:
        """Run one verb; EngineFailedError when it fails and `check` is set, or when it takes too long."""
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        limit = timeout * self.patience
        try:
            done = subprocess.run(
                [*self.command, *words],
                input=raw,
                stdin=subprocess.DEVNULL if raw is None else None,
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineFailedError(f"{self.name} {' '.join(words[:6])} …: not done in {limit:g} s") from None
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        if check and done.returncode:
            raise EngineFailedError(f"{self.name} {' '.join(words)}: {done.returncode}: {err or out}")
        return Done(code=done.returncode, out=out, err=err)

    def inspect(self, kind: str, name: str) -> Any:
        return json.loads(self.call(kind, "inspect", name).out)[0]

    def history(self, image: str, *options: str) -> str:
        """How an image was made. Docker knows it of what is unpacked, and unpacks another platform's when it is used."""
        words = ("history", "--no-trunc", *options, image)
        done = self.call(*words, check=False)
        if done.code and "snapshot" in done.err:
            self.run(image, entrypoint="true")
            done = self.call(*words)
        if done.code:
            raise EngineFailedError(f"{self.name} {' '.join(words)}: {done.err}")
        return done.out

    def run(
        self,
        image: str,
        *words: str,
        entrypoint: str,
        options: Sequence[str] = (),
        stdin: str | bytes | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> Done:
        """One program in a container of its own, which is gone afterwards."""
        # Nobody waits for its health, and asking costs the machine a Python every two seconds.
        argv = ["run", "--rm", "--pull=never", "--no-healthcheck", *self.limits, *options]
        argv += ["--entrypoint", entrypoint]
        if stdin is not None:
            argv.append("--interactive")
        return self.call(*argv, image, *words, stdin=stdin, timeout=timeout, check=check)

    def script(
        self,
        image: str,
        text: str,
        *words: str,
        options: Sequence[str] = (),
        timeout: float = 600,
        python: str = "python",
    ) -> Done:
        """A Python script in a Python of the image, over stdin: nothing is mounted, so any engine will do."""
        quiet = (*STANDARD, "--network", "none", *options)
        return self.run(
            image, "-", *words, entrypoint=python, options=quiet, stdin=text, timeout=timeout, check=False
        )

    def create(self, image: str, *words: str, name: str, options: Sequence[str] = ()) -> Container:
        """A container that is not started."""
        self.call("create", "--pull=never", *self.limits, "--name", name, *options, image, *words)
        return Container(engine=self, name=name)

    @contextmanager
    def volume(self, name: str) -> Iterator[str]:
        self.call("volume", "create", name)
        try:
            yield name
        finally:
            self.call("volume", "rm", "--force", name, check=False)

    def fill(self, image: str, mount: str, files: Mapping[str, bytes], *, user: str) -> None:
        """Put files into the volume or folder of `--volume mount`, as the user that will read them."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
        folder = mount.split(":")[1]
        self.run(
            image,
            *("--extract", "--no-same-owner", "--directory", folder),
            entrypoint="tar",
            options=("--user", user, "--network", "none", "--volume", mount),
            stdin=packed.getvalue(),
        )


@dataclass(frozen=True, kw_only=True)
class Container:
    engine: Engine
    name: str

    def start(self) -> None:
        self.engine.call("start", self.name)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.inspect("container", self.name)["State"]
        return found

    def ended(self) -> bool:
        return str(self.state()["Status"]) in ("exited", "dead", "stopped")

    def log(self) -> str:
        return self.engine.call("logs", self.name, check=False).text

    def run(self, *words: str, stdin: str | bytes | None = None, timeout: float = 120) -> tuple[int, str]:
        """A command in the container; its exit code and everything it printed."""
        done = self.exec(*words, stdin=stdin, timeout=timeout)
        return done.code, done.text

    def exec(self, *words: str, stdin: str | bytes | None = None, timeout: float = 120) -> Done:
        flags = ("--interactive",) if stdin is not None else ()
        return self.engine.call("exec", *flags, self.name, *words, stdin=stdin, timeout=timeout, check=False)

    def read(self, path: str) -> str:
        """A text file in the container."""
        done = self.exec("cat", path)
        if done.code:
            raise FileNotFoundError(done.err.strip())
        return done.out

    def kill(self, signal: str) -> None:
        self.engine.call("kill", "--signal", signal, self.name)

    def wait(self, timeout: float = 60) -> int:
        """The exit code, when it has ended."""
        return int(self.engine.call("wait", self.name, timeout=timeout).out.split()[-1])

    def published(self, port: int = PORT) -> int:
        """The port of this machine that leads to it. RuntimeError when the container does not run."""
        for _ in range(100):
            done = self.engine.call("port", self.name, f"{port}/tcp", check=False)
            if not done.code and done.out.strip():
                return int(done.out.split()[0].rpartition(":")[2])
            if self.ended():
                break
            time.sleep(0.1)
        raise RuntimeError(f"the container does not run: {self.state()}\n{self.log()}")

    def remove(self) -> None:
        self.engine.call("rm", "--force", "--volumes", self.name, check=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a server is started: the standard way and what a test changes of it."""

    user: str = "4321:4321"  # no passwd entry, in any image
    words: tuple[str, ...] = ("serve", "--cpu")
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def as_options(self) -> list[str]:
        found = [*STANDARD, "--user", self.user, "--publish", f"127.0.0.1::{PORT}", *self.options]
        for name, value in sorted(self.environment.items()):
            found += ["--env", f"{name}={value}"]
        return found


def new_name(what: str) -> str:
    """A name that no other run of these tests has, and by which what it left behind is found."""
    return f"imgbuild-test-{what}-{secrets.token_hex(4)}"
