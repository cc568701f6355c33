"""What builds and runs containers: Docker with BuildKit first, Podman second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from imgbuild.bases import LocalBase
    from imgbuild.render import Abilities


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in an engine's store."""

    tag: str
    digest: str
    """Of what the tag points to."""
    platform: str
    labels: Mapping[str, str]
    size: int
    """Bytes, as the engine counts them."""
    layers: tuple[str, ...] = ()
    """Digests of the uncompressed layers, lowest first, where the engine tells them."""


class Engine(Protocol):
    """The same few calls, whichever engine it is."""

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> str | None:
        """The Docker context of another machine; None for this machine's own engine."""

    @property
    def abilities(self) -> Abilities: ...

    @property
    def command(self) -> tuple[str, ...]:
        """The engine's own command, with what this machine needs in front of every verb."""

    @property
    def limits(self) -> tuple[str, ...]:
        """Options that this machine needs for every new container."""

    def check(self) -> str | None:
        """EngineError when it cannot build; a warning when it can and lacks something."""

    def alive(self) -> bool: ...

    def data_root(self) -> Path | None:
        """Where images are stored, when that is on this machine."""

    def find(self, tag: str) -> Image | None: ...

    def layers(self, image: Image) -> list[Path] | None:
        """An image's layers as files of this machine, bottom to top; None where this process cannot read them."""

    def export(self, tag: str) -> AbstractContextManager[IO[bytes]]:
        """The whole file system of an image, as a tar stream; nothing is left behind in the engine.

        EngineError when there is no such image, or when the engine stops halfway.
        """

    def base_context(self, base: LocalBase, arch: str) -> str:
        """How a bake file names a bootstrapped base for this engine."""

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
        """Build targets of a bake file; progress goes to stderr and `log`. Returns a status."""
