"""An image of a few kilobytes as BuildKit exports one: index, image, provenance, zstd layers."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import zstandard

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.plan import Plan

_OCI = "application/vnd.oci.image."
PACKAGES = "libc6 2.41-12 amd64\nzlib1g 1:1.3.dfsg+really1.3.1-1 amd64\n"


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_layout(
    folder: Path,
    plan: Plan,
    *,
    profile: bytes = b"{}",
    when: str = "2026-11-21T20:00:00Z",
    labels: dict[str, str] | None = None,
    platform: str | None = None,
    bulk: bytes = b"",
) -> dict[str, Any]:
    """Write it; return digests by role. `when` is in its provenance, `profile` and `bulk` in layers."""
    layers = [
        tar(
            {"etc/os-release": b"NAME=Debian\n", "usr/share/imgbuild/debian-packages.txt": PACKAGES.encode()}
        ),
        tar({"opt/venv/x.py": b"pass\n", "opt/venv/bulk": bulk}),
        tar({"etc/comfyrun/profile.json": profile}),
    ]
    system, _, architecture = (platform or plan.platform).partition("/")
    packed = [zstandard.ZstdCompressor(level=3).compress(layer) for layer in layers]
    config = {
        "architecture": architecture,
        "os": system,
        "config": {
            "Env": ["PATH=/opt/venv/bin:/usr/bin"],
            "Labels": {**plan.labels, **(labels or {})},
            "Entrypoint": ["comfyrun"],
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        "history": [
            {"created_by": "ADD base.tar /"},
            {"created_by": "COPY --link --from=venv-python /o/ /"},
            {"created_by": "ENV PATH", "empty_layer": True},
            {"created_by": "COPY --link --from=profile /o/ /"},
        ],
    }
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(kind: str, content: bytes, **more: Any) -> dict[str, Any]:
        digest = _digest(content)
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": kind, "digest": digest, "size": len(content), **more}

    def document(kind: str, **parts: Any) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": f"{_OCI}{kind}", **parts}).encode()

    image = put(
        f"{_OCI}manifest.v1+json",
        document(
            "manifest.v1+json",
            config=put(f"{_OCI}config.v1+json", json.dumps(config).encode()),
            layers=[put(f"{_OCI}layer.v1.tar+zstd", layer) for layer in packed],
        ),
        platform={"architecture": architecture, "os": system},
    )
    statement = json.dumps({"predicate": {"metadata": {"buildStartedOn": when}}}).encode()
    provenance = put(
        f"{_OCI}manifest.v1+json",
        document(
            "manifest.v1+json",
            config=put(f"{_OCI}config.v1+json", json.dumps({"os": "unknown", "when": when}).encode()),
            layers=[put("application/vnd.in-toto+json", statement)],
        ),
        platform={"architecture": "unknown", "os": "unknown"},
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image["digest"],
        },
    )
    index = put(f"{_OCI}index.v1+json", document("index.v1+json", manifests=[image, provenance]))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return {
        "image": image["digest"],
        "index": index["digest"],
        "layers": [_digest(layer) for layer in packed],
        "size": sum(len(layer) for layer in packed),
    }


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
