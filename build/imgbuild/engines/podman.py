"""Podman: builds the same stages for this machine's own platform, one target after the other."""

from __future__ import annotations

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.engines import Image
from imgbuild.errors import ConfigError, EngineError
from imgbuild.render import PODMAN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgbuild.bases import LocalBase

_CAP_SYS_RESOURCE = 1 << 24
_CHUNK = 1 << 20
_PREFIX = "localhost/"
"""Podman does not take a short name for a local image."""


class Podman:
    name = "podman"
    context = None
    abilities = PODMAN

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.confined = not _may_raise_limits()

    @property
    def command(self) -> tuple[str, ...]:
        """Where a process may not raise its own limits, only runc with cgroupfs starts a container."""
        own = ("--runtime", "runc", "--cgroup-manager", "cgroupfs") if self.confined else ()
        return ("podman", *own)

    @property
    def limits(self) -> tuple[str, ...]:
        return ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024") if self.confined else ()

    def _podman(self, *words: str | Path) -> list[str]:
        return [*self.command, *map(str, words)]

    def check(self) -> str | None:
        if proc.which("podman", env=self.env) is None:
            raise EngineError("podman is not installed", hint="apt-get install podman, or --engine docker")
        done = proc.run(self._podman("info", "--format", "json"), env=self.env, check=False, timeout=60)
        if done.returncode:
            raise EngineError(f"podman does not work: {done.stderr.strip()[-400:]}", hint="podman info")
        return None

    def alive(self) -> bool:
        return proc.run(self._podman("version"), env=self.env, check=False, timeout=60).returncode == 0

    def data_root(self) -> Path | None:
        argv = self._podman("info", "--format", "{{.Store.GraphRoot}}")
        root = Path(proc.run(argv, env=self.env, timeout=60).stdout.strip())
        return root if root.is_dir() else None

    def find(self, tag: str) -> Image | None:
        argv = self._podman("image", "inspect", _PREFIX + tag)
        done = proc.run(argv, env=self.env, check=False, timeout=60)
        if done.returncode:
            return None
        found: Any = json.loads(done.stdout)[0]
        return Image(
            tag=_PREFIX + tag,
            digest=f"sha256:{found['Id']}",
            platform=f"{found['Os']}/{found['Architecture']}",
            labels=found.get("Labels") or {},
            size=int(found.get("Size", 0)),
        )

    def layers(self, image: Image) -> list[Path] | None:  # noqa: ARG002  (Podman keeps them unpacked)
        return None

    @contextmanager
    def export(self, tag: str) -> Iterator[IO[bytes]]:
        """The image's file system as a tar stream, out of a container that is never started."""
        image = self.find(tag)
        if image is None:
            raise EngineError(f"Podman has no image {tag}")
        # A command, for images that name none.
        argv = self._podman("create", "--pull=never", "--network=none", image.tag, "none")
        container = proc.run(argv, env=self.env, timeout=300).stdout.split()[-1]
        try:
            with self._exported(container) as stream:
                yield stream
        except proc.ProcError as e:
            raise EngineError(f"Podman stopped while it gave out {tag}: {e.output.strip()[-400:]}") from None
        finally:
            argv = self._podman("rm", "--force", "--volumes", container)
            proc.run(argv, env=self.env, check=False, timeout=300)

    @contextmanager
    def _exported(self, container: str) -> Iterator[IO[bytes]]:
        """Podman writes into a named pipe, in a thread, and the caller reads."""
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
            pipe = Path(folder, "pipe")
            os.mkfifo(pipe, 0o600)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            # As long as somebody could write, a reader waits; so Podman may open the pipe late, or never.
            writer = os.open(pipe, os.O_WRONLY)
            os.set_blocking(reader, True)

            def give_out() -> None:
                try:
                    proc.run(self._podman("export", "--output", pipe, container), env=self.env)
                finally:
                    os.close(writer)

            with os.fdopen(reader, "rb", _CHUNK) as stream:
                done = thread.submit(give_out)
                try:
                    yield stream
                except Exception:
                    _drain(stream)
                    done.result()  # where Podman failed, that is the cause
                    raise
                finally:
                    _drain(stream)
            done.result()

    def base_context(self, base: LocalBase, arch: str) -> str:
        """Import the bootstrapped tar as a local image, once."""
        reference = (
            f"{_PREFIX}imgbuild-base:{base.folder.name}-{arch}-{base.platforms[arch]['packages'][:12]}"
        )
        if proc.run(self._podman("image", "exists", reference), env=self.env, check=False).returncode:
            argv = self._podman("import", "--quiet", "--arch", arch, "--os", "linux")
            argv += ["--change", "ENV PATH=/usr/local/bin:/usr/bin:/bin", str(base.tar(arch)), reference]
            proc.run(argv, env=self.env, timeout=900)
        return reference

    def bake(
        self,
        bake_file: Path,
        targets: tuple[str, ...],
        *,
        log: IO[bytes],
        metadata: Path,
        progress: str,  # noqa: ARG002  (Podman has one kind)
        builder: str | None,
        no_cache: bool,
    ) -> int:
        if builder:
            raise ConfigError("--builder names a buildx builder, and --engine podman has none")
        bake: Any = json.loads(bake_file.read_text())
        done: dict[str, Any] = {}
        for name in targets:
            begun = time.monotonic()
            status = proc.stream(self._build(bake["target"][name], no_cache=no_cache), log=log, env=self.env)
            if status:
                return status
            done[name] = {"seconds": round(time.monotonic() - begun, 1)}
        metadata.write_text(json.dumps(done))
        return 0

    def _build(self, target: Any, *, no_cache: bool) -> list[str]:
        contexts = dict(target["contexts"])
        contexts.pop("host", None)  # one platform: the Dockerfile makes it from the base
        base = contexts.pop("base")
        argv = self._podman("build", *self.limits, "--format", "docker", "--layers", "--pull=never")
        argv += ["--timestamp", target["args"]["SOURCE_DATE_EPOCH"], "--build-arg", f"BASE={base}"]
        argv += ["--no-cache"] if no_cache else []
        for name, where in sorted(contexts.items()):
            argv += ["--build-context", f"{name}={where}"]
        for secret in target.get("secret", ()):
            argv += ["--secret", secret]
        for name, value in sorted(target.get("labels", {}).items()):
            argv += ["--label", f"{name}={value}"]
        for tag in target["tags"]:
            argv += ["--tag", _PREFIX + tag]
        context = target["context"]
        return [*argv, "--target", target["target"], "--file", f"{context}/{target['dockerfile']}", context]


def _drain(stream: IO[bytes]) -> None:
    """Read to the end: Podman would wait for ever to write the rest."""
    while stream.read(_CHUNK):
        pass


def _may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return True
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & _CAP_SYS_RESOURCE)
