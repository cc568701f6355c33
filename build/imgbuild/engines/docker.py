"""Docker: BuildKit through buildx for building, the Docker SDK for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import IO

_REMEDY = "imgbuild doctor --fix installs and starts one on Debian and Ubuntu"


@dataclass(frozen=True, kw_only=True)
class Image:
    tag: str
    digest: str
    """Of what the tag points to in the engine's store."""
    platform: str
    labels: Mapping[str, str]
    size: int
    """Bytes in the engine's store, as the engine counts them."""


class Docker:
    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The SDK's client; EngineError when there is no engine to talk to."""
        import docker  # noqa: PLC0415  (slow to import, and --help has no need of it)
        from docker.errors import DockerException  # noqa: PLC0415

        if self._client is None:
            try:
                client = docker.from_env(environment=dict(self.env), timeout=120)
                client.ping()
            except DockerException as e:
                raise EngineError(f"no Docker engine can be reached: {_short(e)}", hint=_REMEDY) from None
            self._client = client
        return self._client

    def alive(self) -> bool:
        try:
            return bool(self.client.ping())
        except Exception:  # noqa: BLE001  (whatever it raises, it is not alive)
            return False

    def info(self) -> dict[str, Any]:
        return dict(self.client.info())

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
        )

    def ours(self) -> Iterator[Image]:
        """Every tagged image that this tool built."""
        for found in self.client.images.list(filters={"label": "imgbuild.target"}):
            for tag in found.tags:
                image = self.find(tag)
                if image is not None:
                    yield image

    def buildx_version(self) -> tuple[int, int]:
        done = proc.run(["docker", "buildx", "version"], env=self.env, check=False, timeout=30)
        if done.returncode:
            raise EngineError("docker buildx is not installed", hint=_REMEDY)
        words = [w.lstrip("v") for w in done.stdout.split() if w.lstrip("v")[:1].isdigit()]
        numbers = (words or ["0.0"])[0].split(".")
        return int(numbers[0]), int(numbers[1])

    def bake(
        self,
        bake_file: Path,
        targets: tuple[str, ...],
        *,
        log: IO[bytes],
        metadata: Path,
        progress: str = "auto",
        builder: str | None = None,
        no_cache: bool = False,
        allow: tuple[Path, ...] = (),
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
        if builder:
            argv += ["--builder", builder]
        if no_cache:
            argv.append("--no-cache")
        if self.buildx_version() >= (0, 17):  # from here on bake asks before it reads outside its folder
            for folder in allow:
                argv += ["--allow", f"fs.read={folder}"]
        return proc.stream(
            [*argv, *targets], log=log, env={**self.env, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        )


def _short(e: Exception) -> str:
    text = str(e)
    if "FileNotFoundError" in text or "No such file" in text:
        return "its socket is not there"
    if "PermissionError" in text or "Permission denied" in text:
        return "this user may not use its socket"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return "nobody listens on its socket"
    return text.splitlines()[0][:200]
