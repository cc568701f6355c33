"""Images of some kilobytes, put into a registry by the tool's own client: no engine builds them, none has seen them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgbuild.manifests import CONFIG, INDEX, MANIFEST, Descriptor, Document
from imgbuild.reference import Reference
from imgbuild.registry import Repository

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class TinyImage:
    """Layers are files by path each; `level` is gzip's, so that equal content can have other blobs."""

    layers: Sequence[Mapping[str, bytes]]
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str = "linux/amd64"
    created_by: Sequence[str] = ()
    level: int = 6

    def blobs(self) -> list[tuple[bytes, bytes]]:
        tars = [tar_of(layer) for layer in self.layers]
        return [(t, gzip.compress(t, self.level, mtime=0)) for t in tars]

    def config(self) -> bytes:
        system, _, arch = self.platform.partition("/")
        steps = list(self.created_by) or [f"COPY layer{i} /" for i in range(len(self.layers))]
        return json.dumps(
            {
                "architecture": arch,
                "os": system,
                "config": {
                    "Labels": dict(self.labels),
                    "Cmd": ["none"],
                    "Env": ["PATH=/usr/bin", "HF_TOKEN=hf_secret"],
                    "Volumes": {"/data": {}},
                },
                "rootfs": {"type": "layers", "diff_ids": [digest(t) for t, _ in self.blobs()]},
                "history": [{"created_by": s} for s in steps],
            }
        ).encode()


def push(
    where: str, image: TinyImage, env: Mapping[str, str] | None = None, *, attested: bool = False
) -> str:
    """Put an image under REGISTRY/PATH:TAG; the digest of its manifest. `attested`: in an index with an attestation."""
    reference = Reference.parse(where)
    with Repository.of(reference, env=env or os.environ, actions="pull,push") as repository:
        config = image.config()
        layers = []
        for _, blob in image.blobs():
            repository.upload(digest(blob), blob)
            layers.append({"mediaType": _LAYER, "digest": digest(blob), "size": len(blob)})
        repository.upload(digest(config), config)
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": layers,
        }
        document = Document(media_type=MANIFEST, raw=json.dumps(manifest).encode())
        if not attested:
            repository.put_manifest(reference.name, document)
            return document.digest
        repository.put_manifest(document.digest, document)
        system, _, arch = image.platform.partition("/")
        own = document.descriptor(platform={"os": system, "architecture": arch})
        statement = b'{"_type":"https://in-toto.io/Statement/v0.1"}'
        repository.upload(digest(statement), statement)
        attestation = {
            **manifest,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [
                {
                    "mediaType": "application/vnd.in-toto+json",
                    "digest": digest(statement),
                    "size": len(statement),
                }
            ],
        }
        other = Document(media_type=MANIFEST, raw=json.dumps(attestation).encode())
        repository.put_manifest(other.digest, other)
        theirs = Descriptor(
            media_type=MANIFEST,
            digest=other.digest,
            size=len(other.raw),
            platform={"os": "unknown", "architecture": "unknown"},
            annotations={
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": document.digest,
            },
        )
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [json.loads(own.raw()), json.loads(theirs.raw())],
        }
        top = Document(media_type=INDEX, raw=json.dumps(index).encode())
        repository.put_manifest(reference.name, top)
        return document.digest


def attach(where: str, subject: str, artifact_type: str, content: bytes) -> None:
    """An artifact beside an image: an SBOM."""
    reference = Reference.parse(where)
    with Repository.of(reference, env=os.environ, actions="pull,push") as repository:
        image = repository.manifest(subject)
        assert image is not None
        repository.upload(digest(b"{}"), b"{}")
        repository.upload(digest(content), content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": artifact_type, "digest": digest(content), "size": len(content)}],
            "subject": json.loads(image.descriptor().raw()),
        }
        repository.attach(Document(media_type=MANIFEST, raw=json.dumps(manifest).encode()))
