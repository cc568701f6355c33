"""An image, wherever it lies: what its configuration says, layer by layer with names and sizes. Values only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from imgbuild.errors import VerificationError
from imgbuild.plan import WORK
from imgbuild.verify import LabelledKernel, parse_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.manifests import ImageConfig
    from imgbuild.remoteimage import RemoteImage

Place = Literal["registry", "docker", "podman", "archive"]

TOP = ("comfyui", "nodes", "comfyrun", "profile")
"""What the runtime stage copies last."""
_COPIED = re.compile(r"COPY (?:--\S+ )*/o/ /|/bin/sh -c #\(nop\) COPY (?:dir|multi):\S+ in /")
_SHELL = re.compile(r"^/bin/sh -c (?:#\(nop\) +)?")
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class Layer:
    diff: str
    """Digest of the uncompressed tar: equal where the content is, however it is stored."""
    name: str
    """The stage it was copied from, for our own images; else the line of the Dockerfile."""
    created_by: str
    stored: int | None = None
    """Bytes of the blob, as it lies in a registry or an archive."""
    unpacked: int | None = None
    """Bytes on disk, where somebody has unpacked it."""

    @property
    def made_by(self) -> str:
        """The line of the Dockerfile, cut to a table's column."""
        return _line(self.created_by)

    @property
    def size(self) -> int:
        """The size to show: what it takes unpacked where that is known."""
        return self.unpacked if self.unpacked is not None else self.stored or 0


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What lies beside an image in its registry, or in its archive."""

    kind: str
    """`SBOM`, `signature`, `provenance`, or the artifact's type where it is none of them."""
    digest: str
    artifact_type: str


@dataclass(frozen=True, kw_only=True)
class View:
    reference: str
    place: Place
    digest: str
    """Of the platform's manifest; with Podman of the configuration."""
    platform: str
    created: str | None
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    user: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]
    healthcheck: bool
    layers: tuple[Layer, ...]
    """From the bottom to the top."""
    tags: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stored(self) -> int | None:
        """Bytes of all blobs; one that is there twice counts once."""
        return _total({(layer.diff, layer.stored) for layer in self.layers})

    @property
    def unpacked(self) -> int | None:
        return _total({(layer.diff, layer.unpacked) for layer in self.layers})

    @property
    def kernels(self) -> tuple[LabelledKernel, ...]:
        """Of the label; none where it cannot be read."""
        try:
            return parse_kernels(self.labels.get("imgbuild.kernels", "none"))
        except VerificationError:
            return ()

    @property
    def ours(self) -> bool:
        return "imgbuild.target" in self.labels

    def as_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "place": self.place,
            "digest": self.digest,
            "platform": self.platform,
            "created": self.created,
            "tags": self.tags,
            "labels": dict(self.labels),
            "environment": dict(self.environment),
            "user": self.user,
            "entrypoint": self.entrypoint,
            "command": self.command,
            "ports": self.ports,
            "volumes": self.volumes,
            "healthcheck": self.healthcheck,
            "kernels": [
                {"name": k.name, "version": k.version, "key": k.key, "code": k.code} for k in self.kernels
            ],
            "layers": [
                {
                    "name": x.name,
                    "diff_id": x.diff,
                    "created_by": x.created_by,
                    "stored_bytes": x.stored,
                    "unpacked_bytes": x.unpacked,
                }
                for x in self.layers
            ],
            "stored_bytes": self.stored,
            "unpacked_bytes": self.unpacked,
            "attachments": [
                {"kind": a.kind, "digest": a.digest, "artifact_type": a.artifact_type}
                for a in self.attachments
            ],
        }


def of_config(
    config: ImageConfig,
    *,
    reference: str,
    place: Place,
    digest: str,
    groups: Sequence[str],
    stored: Sequence[int | None],
    unpacked: Mapping[str, int] | None = None,
    tags: Sequence[str] = (),
    attachments: Sequence[Attachment] = (),
) -> View:
    """From an OCI configuration. `groups`: the matrix's layer groups; `stored`: the size of each layer's blob."""
    diffs = config.rootfs.diff_ids
    steps = [step.created_by for step in config.history if not step.empty_layer]
    steps = (steps + [""] * len(diffs))[: len(diffs)]
    names = layer_names(steps, config.labels, groups)
    more = config.config.model_extra or {}
    sizes = unpacked or {}
    return View(
        reference=reference,
        place=place,
        digest=digest,
        platform=config.platform,
        created=config.created,
        labels=config.labels,
        environment=config.env,
        user=config.config.user,
        entrypoint=config.config.entrypoint,
        command=config.config.command,
        ports=tuple(sorted(more.get("ExposedPorts") or {})),
        volumes=tuple(sorted(more.get("Volumes") or {})),
        healthcheck=config.config.healthcheck is not None and bool(config.config.healthcheck.test),
        layers=tuple(
            Layer(diff=d, name=n, created_by=by, stored=size, unpacked=sizes.get(d))
            for d, n, by, size in zip(diffs, names, steps, stored, strict=True)
        ),
        tags=tuple(tags),
        attachments=tuple(attachments),
    )


def of_remote(
    image: RemoteImage,
    *,
    groups: Sequence[str],
    attachments: Sequence[Attachment] = (),
    unpacked: Mapping[str, int] | None = None,
) -> View:
    return of_config(
        image.config,
        reference=str(image.reference),
        place="registry",
        digest=image.digest,
        groups=groups,
        stored=[layer.size for layer in image.layers],
        unpacked=unpacked,
        attachments=attachments,
    )


def layer_names(
    created_by: Sequence[str], labels: Mapping[str, str], groups: Sequence[str]
) -> tuple[str, ...]:
    """A name for each layer. For an image of ours: base, the groups of packages, kernels, ComfyUI, profile.

    `groups` are the matrix's, from the bottom to the top; a target without GPU has fewer. Where the number says that
    the image was made from other templates, the lines of the Dockerfile are the names.
    """
    lines = [_line(text) for text in created_by]
    try:
        kernels = [f"kernel {k.name}" for k in parse_kernels(labels.get("imgbuild.kernels", "none"))]
    except VerificationError:
        return tuple(lines)
    copied = [i for i, text in enumerate(created_by) if _COPIED.match(text)]
    # The venv of `comfyrun worker`, which older images have not.
    work = [WORK] if labels.get("imgbuild.work", "none") != "none" else []
    count = len(copied) - len(work) - len(kernels) - len(TOP)
    contiguous = bool(copied) and copied == list(range(copied[0], copied[0] + len(copied)))
    if "imgbuild.target" not in labels or not contiguous or not 0 <= count <= len(groups):
        return tuple(lines)
    # Which group a target lacks, only its plan says: without a GPU it is the first, NVIDIA's libraries.
    ours = [*groups[len(groups) - count :], *work, *kernels, *TOP]
    below = ["base" if copied[0] == 1 else f"base {i + 1}/{copied[0]}" for i in range(copied[0])]
    return (*below, *ours, *lines[copied[-1] + 1 :])


def _line(text: str) -> str:
    short = " ".join(_SHELL.sub("", text).replace("# buildkit", "").split())
    return f"{short[: _LONGEST_NAME - 1]}…" if len(short) > _LONGEST_NAME else short or "–"


def _total(sizes: set[tuple[str, int | None]]) -> int | None:
    known = [size for _, size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
