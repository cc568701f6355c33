"""What a registry says of an image: descriptor, manifest, index and configuration, the parts that are used here.

Fields that are not named here are kept, so that a document that is read, changed
and written again loses nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from imgbuild.errors import UnsoundError, first_mistake

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
INDEXES = (INDEX, DOCKER_INDEX)
KINDS = (INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
"""Every kind of manifest that is understood; what a registry is asked for."""
ATTESTATION = "vnd.docker.reference.type"
"""The annotation by which BuildKit's provenance in an index is told from a platform."""

_T = TypeVar("_T", bound="_Part")
_Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
# Docker writes null where a list or a map is empty.
_Words = Annotated[dict[str, str], BeforeValidator(lambda value: {} if value is None else value)]
_List = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value is None else value)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, serialize_by_alias=True)

    def raw(self) -> bytes:
        """As JSON without blanks, keys sorted: equal documents have equal digests."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))


class Platform(_Part):
    architecture: str
    os: str
    variant: str | None = None

    def __str__(self) -> str:
        """As in `docker run --platform`: 'linux/arm64'."""
        # Every 64-bit ARM is a v8, which some tools write and others do not.
        plain = self.variant is None or (self.architecture, self.variant) == ("arm64", "v8")
        return f"{self.os}/{self.architecture}" + ("" if plain else f"/{self.variant}")


class Descriptor(_Part):
    """What points to a blob or a manifest: its kind, its digest, its size in bytes."""

    media_type: Annotated[str, Field(alias="mediaType")]
    digest: _Digest
    size: Annotated[int, Field(ge=0, strict=True)]
    annotations: _Words = {}
    platform: Platform | None = None
    artifact_type: Annotated[str | None, Field(alias="artifactType")] = None

    @property
    def is_attestation(self) -> bool:
        return ATTESTATION in self.annotations


class Manifest(_Part):
    """Of one image, or of an artifact."""

    schema_version: Annotated[Literal[2], Field(alias="schemaVersion")] = 2
    media_type: Annotated[str, Field(alias="mediaType")] = MANIFEST
    artifact_type: Annotated[str | None, Field(alias="artifactType")] = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: _Words = {}


class Index(_Part):
    """Of several images, of which an engine takes the one for its platform."""

    schema_version: Annotated[Literal[2], Field(alias="schemaVersion")] = 2
    media_type: Annotated[str, Field(alias="mediaType")] = INDEX
    artifact_type: Annotated[str | None, Field(alias="artifactType")] = None
    manifests: tuple[Descriptor, ...]
    annotations: _Words = {}

    @property
    def images(self) -> tuple[Descriptor, ...]:
        """The manifests that are of a platform, and no attestation of one."""
        return tuple(m for m in self.manifests if not m.is_attestation)


class Healthcheck(_Part):
    test: Annotated[_List, Field(alias="Test")] = ()


class Running(_Part):
    """How a container of an image starts."""

    user: Annotated[str, Field(alias="User")] = ""
    env: Annotated[_List, Field(alias="Env")] = ()
    """NAME=VALUE each."""
    entrypoint: Annotated[_List, Field(alias="Entrypoint")] = ()
    command: Annotated[_List, Field(alias="Cmd")] = ()
    working_dir: Annotated[str, Field(alias="WorkingDir")] = ""
    labels: Annotated[_Words, Field(alias="Labels")] = {}
    stop_signal: Annotated[str | None, Field(alias="StopSignal")] = None
    healthcheck: Annotated[Healthcheck | None, Field(alias="Healthcheck")] = None


class Step(_Part):
    """One line of an image's history."""

    created: str | None = None
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFS(_Part):
    type: str = "layers"
    diff_ids: tuple[_Digest, ...] = ()


class ImageConfig(_Part):
    """An image's configuration: platform, environment, labels, history, digests of the uncompressed layers."""

    architecture: str
    os: str
    variant: str | None = None
    created: str | None = None
    config: Running = Running()
    rootfs: RootFS = RootFS()
    history: Annotated[tuple[Step, ...], BeforeValidator(lambda value: () if value is None else value)] = ()

    @property
    def platform(self) -> str:
        return str(Platform(architecture=self.architecture, os=self.os, variant=self.variant or None))

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.config.labels)

    @property
    def env(self) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in self.config.env)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest as a registry holds it, to the byte."""

    media_type: str
    raw: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    def manifest(self) -> Manifest:
        """UnsoundError when it is none."""
        return parse(Manifest, self.raw, "manifest")

    def index(self) -> Index:
        """UnsoundError when it is none."""
        return parse(Index, self.raw, "index")

    def descriptor(self, **more: Any) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw), **more)


def parse(model: type[_T], raw: bytes, what: str) -> _T:
    """UnsoundError with the first mistake."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as e:
        raise UnsoundError(f"{what}: {first_mistake(e)}") from None


def canonical(data: Any) -> bytes:
    """JSON by which equal data has equal digests."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
