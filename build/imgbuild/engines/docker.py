"""Docker: BuildKit through buildx for building, the Docker SDK for everything else."""

from __future__ import annotations

import io
import json
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from imgbuild import proc
from imgbuild.bases import ARCHITECTURES
from imgbuild.engines import Image
from imgbuild.engines.blobs import blob_folder, layer_blobs
from imgbuild.errors import ConfigError, EngineError
from imgbuild.render import BUILDKIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgbuild.bases import LocalBase

_REMEDY = "imgbuild doctor --fix installs and starts one on Debian and Ubuntu"
_BAKE_ASKS = (0, 17)
"""From this buildx on, bake asks before it reads outside its folder."""
_CHUNK = 1 << 20
_LOCAL = "http+docker://localhost"
"""How the SDK calls a socket of this machine."""


class Docker:
    """The engine that the docker command would use, or the one of a context."""

    name = "docker"
    abilities = BUILDKIT
    limits = ()

    def __init__(self, env: Mapping[str, str], *, context: str | None = None, beside: bool = False) -> None:
        """`beside`: others build at the same time, so each line of progress names its target."""
        self.env = dict(env)
        self.context = context
        self.beside = beside
        if context is not None:
            self.env.pop("DOCKER_HOST", None)  # it would win over every context
            self.env["DOCKER_CONTEXT"] = context
        self._client: Any = None

    @property
    def command(self) -> tuple[str, ...]:
        return ("docker",) if self.context is None else ("docker", "--context", self.context)

    @property
    def client(self) -> Any:
        """The SDK's client; EngineError when there is no engine to talk to."""
        from docker.errors import DockerException  # noqa: PLC0415  (slow to import, and --help has no need of it)

        if self._client is None:
            try:
                client = self._connect()
                client.ping()
            except (DockerException, ValueError, OSError) as e:
                if self.context is not None:
                    raise EngineError(
                        f"the Docker engine of context {self.context} cannot be reached: {_short(e)}",
                        hint=f"docker --context {self.context} info",
                    ) from None
                raise EngineError(f"no Docker engine can be reached: {_short(e)}", hint=_REMEDY) from None
            self._client = client
        return self._client

    def _connect(self) -> Any:
        import docker  # noqa: PLC0415
        from docker.context import ContextAPI  # noqa: PLC0415

        if self.context is not None:
            return _connect_to(self.context, self.env)
        context = None if self.env.get("DOCKER_HOST") else ContextAPI.get_current_context()
        if context is not None and context.Name != "default":  # as the docker command does
            return docker.DockerClient(base_url=context.Host, timeout=120)
        return docker.from_env(environment=dict(self.env), timeout=120)

    def check(self) -> str | None:
        info = self.client.info()
        self.buildx_version()
        store = dict(info.get("DriverStatus") or []).get("driver-type", "")
        if "containerd" not in store:
            return (
                "the engine does not use the containerd image store: an image of another platform "
                "cannot be loaded (imgbuild doctor --fix)"
            )
        return None

    def alive(self) -> bool:
        try:
            return bool(self.client.ping())
        except Exception:  # noqa: BLE001  (whatever it raises, it is not alive)
            return False

    def machine(self) -> tuple[str, int, int]:
        """Of the machine it runs on: architecture in OCI's spelling, cores, bytes of memory."""
        info = self.client.info()
        name = str(info["Architecture"])
        return ARCHITECTURES.get(name, name), int(info["NCPU"]), int(info["MemTotal"])

    def data_root(self) -> Path | None:
        if not str(self.client.api.base_url).startswith(_LOCAL):
            return None  # a folder of that name here is another one
        root = Path(str(self.client.info().get("DockerRootDir", "/var/lib/docker")))
        return root if root.is_dir() else None

    def find(self, tag: str) -> Image | None:
        from docker.errors import ImageNotFound  # noqa: PLC0415

        try:
            found = self.client.images.get(tag)
        except ImageNotFound:
            return None
        attrs = found.attrs
        return Image(
            tag=tag,
            digest=str(found.id),
            platform=f"{attrs['Os']}/{attrs['Architecture']}",
            labels=dict(found.labels or {}),
            size=int(attrs.get("Size", 0)),
            layers=tuple((attrs.get("RootFS") or {}).get("Layers") or ()),
        )

    def layers(self, image: Image) -> list[Path] | None:
        folder = blob_folder(self.data_root(), image.digest)
        return layer_blobs(folder, image.digest) if folder else None

    @contextmanager
    def export(self, tag: str) -> Iterator[IO[bytes]]:
        """The image's file system as a tar stream, out of a container that is never started."""
        from docker.errors import DockerException  # noqa: PLC0415

        image = self.find(tag)
        if image is None:
            raise EngineError(f"Docker has no image {tag}")
        try:
            # A command, for images that name none; the platform, for images of another one.
            container = self.client.containers.create(tag, command=["none"], platform=image.platform)
        except (DockerException, OSError) as e:
            raise EngineError(f"Docker cannot make a container of {tag}: {_short(e)}") from None
        try:
            with io.BufferedReader(_Chunks(container.export(chunk_size=_CHUNK)), _CHUNK) as stream:
                yield cast("IO[bytes]", stream)
        except DockerException as e:
            raise EngineError(f"Docker stopped while it gave out {tag}: {_short(e)}") from None
        finally:
            with suppress(DockerException, OSError):  # what went wrong is told already
                container.remove(v=True, force=True)

    def base_context(self, base: LocalBase, arch: str) -> str:  # noqa: ARG002  (its layout holds all platforms)
        return base.context

    def buildx_version(self) -> tuple[int, int]:
        done = proc.run(["docker", "buildx", "version"], env=self.env, check=False, timeout=30)
        if done.returncode:
            raise EngineError("docker buildx is not installed", hint=_REMEDY)
        found = re.search(r"\bv?(\d+)\.(\d+)\.", done.stdout)  # a build from source may say something else
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def bake(
        self,
        bake_file: Path,
        targets: tuple[str, ...],
        *,
        log: IO[bytes],
        metadata: Path,
        progress: str,
        builder: str | None,
        no_cache: bool,
    ) -> int:
        """Run one bake; its progress goes to stderr and `log`. Returns its status."""
        argv: list[str | Path] = [
            "docker",
            "buildx",
            "bake",
            "--file",
            bake_file,
            "--metadata-file",
            metadata,
        ]
        argv += ["--progress", {"json": "rawjson"}.get(progress, progress)]
        if builder or self.context:  # buildx has a builder of every context's name
            argv += ["--builder", str(builder or self.context)]
        if no_cache:
            argv.append("--no-cache")
        if self.buildx_version() >= _BAKE_ASKS:
            argv += ["--allow", "fs=/"]  # reads contexts, writes compiled kernels

        prefix = None
        if self.beside:
            prefix = "" if progress == "json" else f"{'+'.join(targets)} | "
        return proc.stream([*argv, *targets], log=log, env=self.env, prefix=prefix)


def contexts(env: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the docker command's contexts."""
    done = proc.run(["docker", "context", "ls", "--quiet"], env=env, timeout=30)
    return tuple(sorted(done.stdout.split()))


def _connect_to(context: str, env: Mapping[str, str]) -> Any:
    """A client for a context's engine. The docker command is asked: the SDK looks into another folder at times."""
    import docker  # noqa: PLC0415
    from docker.tls import TLSConfig  # noqa: PLC0415

    done = proc.run(["docker", "context", "inspect", context], env=env, check=False, timeout=30)
    if done.returncode:
        raise ConfigError(f"there is no Docker context {context!r}", hint="docker context ls")
    found: Any = json.loads(done.stdout)[0]
    endpoint = found["Endpoints"]["docker"]
    tls: Any = False
    if files := (found.get("TLSMaterial") or {}).get("docker"):
        folder = Path(found["Storage"]["TLSPath"], "docker")
        pair = (str(folder / "cert.pem"), str(folder / "key.pem")) if "cert.pem" in files else None
        ca = str(folder / "ca.pem") if "ca.pem" in files else None
        tls = TLSConfig(client_cert=pair, ca_cert=ca, verify=not endpoint.get("SkipTLSVerify"))
    host = str(endpoint["Host"])
    # The ssh program, as the docker command does: it knows the user's keys, agent and configuration.
    return docker.DockerClient(base_url=host, tls=tls, timeout=120, use_ssh_client=host.startswith("ssh:"))


class _Chunks(io.RawIOBase):
    """A file made of the pieces that the SDK hands over."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from requests import RequestException  # noqa: PLC0415

        while not self._rest:
            try:
                self._rest = memoryview(next(self._chunks))
            except StopIteration:
                return 0
            except (RequestException, OSError) as e:
                raise EngineError(f"Docker stopped halfway: {_short(e)}") from None
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _short(e: Exception) -> str:
    text = str(e)
    if "FileNotFoundError" in text or "No such file" in text:
        return "its socket is not there"
    if "PermissionError" in text or "Permission denied" in text:
        return "this user may not use its socket"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return "nobody listens on its socket"
    return text.splitlines()[0][:200]
