"""What is in an image, as CycloneDX 1.6: known from the plan and from the list that the base wrote down.

No scanner looks for it: the lock names every wheel with its hash, the plan
every kernel and source, the base its Debian packages. Equal images give equal
texts: the serial number comes from the digest, the time from SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from imgbuild import __version__
from imgbuild.errors import RegistryError
from imgbuild.manifests import EMPTY, MANIFEST, Descriptor, Document, Manifest, digest_of
from imgbuild.plan import COMFYUI_VENV
from imgbuild.refusals import told
from imgbuild.registry import Repository
from imgbuild.remoteimage import look

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cyclonedx.model.component import Component

    from imgbuild.kernels import KernelPlan
    from imgbuild.lock import Wheel
    from imgbuild.plan import LayerPlan, Plan
    from imgbuild.reference import Reference

SBOM = "application/vnd.cyclonedx+json"
"""Its kind as an artifact, and as a blob."""
EMPTY_CONFIG = b"{}"


def make_sbom(plan: Plan, digest: str, packages: Iterable[Sequence[str]]) -> bytes:
    """The SBOM of the image with this digest of its platform's manifest; `packages` are Debian's: name, version, arch."""
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415  (slow to import, needed by one verb)
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.model.tool import ToolRepository  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415

    image = Component(
        type=ComponentType.CONTAINER,
        name=plan.image,
        version=plan.tags[0].rpartition(":")[2],
        bom_ref=digest,
        purl=_purl(
            "oci", plan.image, digest, qualifiers={"arch": plan.arch, "tag": plan.tags[0].rpartition(":")[2]}
        ),
        properties=_properties(
            {k.replace("imgbuild.", "imgbuild:", 1): v for k, v in plan.labels.items() if "imgbuild." in k}
        ),
    )
    parts = [
        _comfyui(plan),
        *(_debian(plan, *package) for package in packages),
        *(_wheel(wheel, layer) for layer in plan.layers for wheel in layer.wheels),
        *(_kernel(kernel) for kernel in plan.kernels),
        *(_node(name) for name in plan.nodes),
    ]
    tool = Component(type=ComponentType.APPLICATION, name="imgbuild", version=__version__, bom_ref="imgbuild")
    bom = Bom(
        serial_number=UUID(bytes=hashlib.sha256(digest.encode()).digest()[:16], version=5),
        components=parts,
        metadata=BomMetaData(
            component=image,
            tools=ToolRepository(components=[tool]),
            timestamp=datetime.fromtimestamp(plan.epoch, tz=UTC),
        ),
    )
    bom.register_dependency(image, parts)
    return (JsonV1Dot6(bom).output_as_string(indent=1) + "\n").encode()


def artifact(sbom: bytes, subject: Descriptor) -> Document:
    """The manifest by which an SBOM hangs on an image; its blobs are the SBOM and EMPTY_CONFIG."""
    manifest = Manifest(
        artifact_type=SBOM,
        config=Descriptor(media_type=EMPTY, digest=digest_of(EMPTY_CONFIG), size=len(EMPTY_CONFIG)),
        layers=(
            Descriptor(
                media_type=SBOM,
                digest=digest_of(sbom),
                size=len(sbom),
                annotations={"org.opencontainers.image.title": "sbom.cdx.json"},
            ),
        ),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
    )
    return Document(media_type=MANIFEST, raw=manifest.raw())


def read_sbom(reference: Reference, platform: str | None = None, *, env: Mapping[str, str]) -> bytes:
    """The SBOM of a published image; RegistryError when the registry has none, or cannot be asked."""
    with (
        told(str(reference), host=reference.host),
        Repository.of(reference, env=env) as repository,
    ):
        image = look(repository, reference, platform)
        found = repository.referrers(image.digest, SBOM)
        document = repository.manifest(found[-1].digest) if found else None
        if document is None:
            raise RegistryError(
                f"{reference} ({image.digest}) has no SBOM in its registry",
                hint="imgbuild publish puts one there; docker push does not",
            )
        return repository.read(document.manifest().layers[0])


def _comfyui(plan: Plan) -> Component:
    source = plan.source
    purl = None
    if source.commit and source.git.startswith("https://github.com/"):
        owner, _, name = source.git.removeprefix("https://github.com/").removesuffix(".git").partition("/")
        purl = _purl("github", name, source.commit, namespace=owner)
    return _component(
        "application",
        "ComfyUI",
        source.version,
        ref="comfyui",
        purl=purl,
        license="GPL-3.0-only",
        properties={"imgbuild:source": source.kind, "imgbuild:identity": source.identity},
    )


def _debian(plan: Plan, name: str, version: str, architecture: str) -> Component:
    qualifiers = {"arch": architecture, "distro": plan.base.suite}
    return _component(
        "library",
        name,
        version,
        ref=f"deb/{name}@{version}/{architecture}",
        purl=_purl("deb", name, version, namespace="debian", qualifiers=qualifiers),
    )


def _wheel(wheel: Wheel, layer: LayerPlan) -> Component:
    return _component(
        "library",
        wheel.name,
        wheel.version,
        # Two venvs may hold the same file.
        ref=f"{'' if layer.venv == COMFYUI_VENV else layer.name + '/'}pypi/{wheel.filename}",
        purl=_purl("pypi", wheel.name, wheel.version, qualifiers={"file_name": wheel.filename}),
        sha256=wheel.sha256,
        properties={"imgbuild:layer": layer.name},
    )


def _kernel(kernel: KernelPlan) -> Component:
    qualifiers = {"vcs_url": f"git+{kernel.git}@{kernel.identity}"} if kernel.kind == "git" else {}
    return _component(
        "library",
        kernel.distribution,
        kernel.version,
        ref=f"kernel/{kernel.name}",
        # The path of a recipe in this project is nobody's package.
        purl=None
        if kernel.kind == "path"
        else _purl("pypi", kernel.distribution, kernel.version, qualifiers=qualifiers),
        license=kernel.license,
        properties={
            "imgbuild:kernel": kernel.name,
            "imgbuild:kernel.key": kernel.key if kernel.compiled else "fallback",
            "imgbuild:kernel.code": " ".join(kernel.code) or "none",
            "imgbuild:source": kernel.kind,
            "imgbuild:identity": kernel.identity,
            "imgbuild:compute-capability": kernel.capability,
        },
    )


def _node(name: str) -> Component:
    return _component("application", f"imgbuild-{name}", __version__, ref=f"node/{name}", license="MIT")


def _component(
    kind: str,
    name: str,
    version: str,
    *,
    ref: str,
    purl: Any = None,
    sha256: str | None = None,
    license: str | None = None,  # noqa: A002  (the field's word)
    properties: Mapping[str, str] | None = None,
) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.model.license import LicenseExpression  # noqa: PLC0415

    return Component(
        type=ComponentType(kind),
        name=name,
        version=version,
        bom_ref=ref,
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else (),
        licenses=[LicenseExpression(license)] if license else (),
        properties=_properties(properties or {}),
    )


def _properties(values: Mapping[str, str]) -> list[Any]:
    from cyclonedx.model import Property  # noqa: PLC0415

    return [Property(name=name, value=value) for name, value in values.items()]


def _purl(
    kind: str,
    name: str,
    version: str,
    *,
    namespace: str | None = None,
    qualifiers: Mapping[str, str] | None = None,
) -> Any:
    from packageurl import PackageURL  # noqa: PLC0415

    return PackageURL(kind, namespace, name, version, dict(qualifiers or {}))
