"""Publishing: an image into a registry, whole or not at all.

Everything goes by digest first: blobs, manifests, SBOM, signature. Tags come
last, when all that was asked for is there, so whatever fails before leaves
every tag where it was. Images are compared by the digest of the platform's
manifest: the index around it holds provenance, whose times change it when
nothing else did.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgbuild import cosign, sbom
from imgbuild.errors import ConfigError, RegistryError, UnsoundError, VerificationError
from imgbuild.manifests import INDEX, Descriptor, Document, Index, Platform
from imgbuild.reference import Reference, image_in
from imgbuild.refusals import RefusedError, told
from imgbuild.registry import Repository
from imgbuild.report import human

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from imgbuild.layout import Layout
    from imgbuild.manifests import Manifest
    from imgbuild.plan import Plan
    from imgbuild.transport import Patience

TagState = Literal["new", "moved", "there"]
_UNMOVABLE = (400, 403, 405, 409, 412)
"""What registries with immutable tags answer to who would move one."""
_DAY = re.compile(r"[0-9]{8}(\.[0-9]{1,3})?")
_TELL_EVERY = 5.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag, and what becomes of it."""

    reference: Reference
    state: TagState
    before: str | None
    """What it pointed to."""


@dataclass(kw_only=True)
class Moved:
    """Bytes of blobs, compressed."""

    sent: int = 0
    there: int = 0
    mounted: int = 0
    """Taken from another repository of the registry."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An image that is in the registry by digest, with all that belongs to it, but for its tags."""

    target: str
    platform: str
    digest: str
    """Of the platform's manifest."""
    top: Document
    """What the tags are to point to."""
    tags: tuple[Tag, ...]
    sbom: str
    """Digest of the SBOM's manifest."""
    signed: bool
    moved: Moved
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Into `registry`, which is REGISTRY/PATH; the image's own name is put behind it, unless it ends so."""

    registry: str
    env: Mapping[str, str]
    say: Callable[[str], None]
    day: str
    """Of the tags that never move: '20261121', or '20261121.2' for a second one of that day."""
    key: str | None = None
    """What cosign signs with."""
    mount: str | None = None
    """The path of a repository on the same registry whose blobs may be taken."""
    dry_run: bool = False
    patience: Patience | None = None
    again: str | None = None
    """The command that was called, for hints."""

    def __post_init__(self) -> None:
        self.name("image")  # whether it can be one
        if not _DAY.fullmatch(self.day):
            raise ConfigError(
                f"--date {self.day}: write it as YYYYMMDD, or YYYYMMDD.2 for a second of that day"
            )
        if self.key:
            cosign.check(self.key, self.env)

    def name(self, image: str) -> Reference:
        """Where an image of that name goes."""
        return image_in(self.registry, image)

    def tags(self, plan: Plan) -> tuple[str, ...]:
        """The one that never moves first, then the one of the version, then the target's own."""
        full, own = (tag.rpartition(":")[2] for tag in plan.tags)
        return (f"{full}-{self.day}", full, own)

    def check(self, image: str) -> None:
        """RegistryError when the registry cannot be asked: told before anything is built or compressed."""
        name = self.name(image)
        with self._told(name.repository), self._repository(name) as repository:
            repository.tags()

    def stage(self, plan: Plan, layout: Layout) -> Staged:
        """Bring an image to the registry by digest, with its SBOM and its signature; no tag moves.

        VerificationError when the layout does not hold what the plan says, RegistryError when the tag of the day is
        another image's, or when the registry fails.
        """
        begun = time.monotonic()
        name = self.name(plan.image)
        image, own = _read(plan, layout)
        manifest = image.manifest()
        moved = Moved()
        with self._told(name.repository), self._repository(name) as repository:
            tags, there = self._tags(repository, name, self.tags(plan), image.digest)
            meter = Meter(plan.name, sum(b.size for b in _blobs(manifest)), self.say)
            for blob in _blobs(manifest):
                self._send(repository, blob, layout.blob(blob), moved, meter)
            self._manifests(repository, layout, image, moved, meter, alone=there is not None)
            self._attach(repository, own, moved)
        top = there or layout.top
        return Staged(
            target=plan.name,
            platform=plan.platform,
            digest=image.digest,
            top=top,
            tags=tags,
            sbom=own.digest,
            signed=self._sign(name, image.digest, top.digest),
            moved=moved,
            seconds=time.monotonic() - begun,
        )

    def finish(self, staged: Sequence[Staged], image: str, combined: str | None = None) -> tuple[Tag, ...]:
        """Point the tags at what is staged; return them all, with the one of the combined index."""
        name = self.name(image)
        moves = [(tag, one.top) for one in staged for tag in one.tags]
        with self._told(name.repository), self._repository(name) as repository:
            if combined is not None:
                moves.append(self._combined(repository, name.tagged(combined), staged))
            done: list[Tag] = []
            for tag, top in moves:
                if tag.state != "there" and not self.dry_run:
                    self._move(repository, tag, top, done)
                    done.append(tag)
        return tuple(tag for tag, _ in moves)

    # Parts of it

    def _repository(self, name: Reference) -> Repository:
        return Repository(
            name.host,
            name.path,
            env=self.env,
            actions="pull" if self.dry_run else "pull,push",
            beside=(self.mount,) if self.mount else (),
            patience=self.patience,
            say=self.say,
        )

    def _told(self, what: str) -> AbstractContextManager[None]:
        return told(what, host=self.registry.partition("/")[0], again=self.again)

    def _tags(
        self, repository: Repository, name: Reference, tags: Sequence[str], digest: str
    ) -> tuple[tuple[Tag, ...], Document | None]:
        """What becomes of each tag, and what is there already of this image: then nothing takes its place."""
        found, there = [], None
        for tag in tags:
            document = repository.manifest(tag)
            same = document is not None and _only_image(document) == digest
            if document is not None and not same and tag == tags[0]:
                raise self._taken(name.tagged(tag), document, digest)
            there = there or (document if same else None)
            state: TagState = "there" if same else "moved" if document else "new"
            before = document.digest if document else None
            found.append(Tag(reference=name.tagged(tag), state=state, before=before))
        return tuple(found), there

    def _taken(self, reference: Reference, document: Document, digest: str) -> RegistryError:
        day, _, number = self.day.partition(".")
        return RegistryError(
            f"{reference} exists, is another image ({_only_image(document) or document.digest}, not {digest}), and "
            "tags of a day never move",
            hint=f"--date {day}.{int(number or 1) + 1} publishes another one of that day; no tag has moved",
        )

    def _send(
        self, repository: Repository, blob: Descriptor, content: Path | bytes, moved: Moved, meter: Meter
    ) -> None:
        how: str
        if self.dry_run:
            how = "there" if repository.has_blob(blob.digest) else "sent"
        elif isinstance(content, bytes):
            how = repository.upload(blob.digest, content, mount=self.mount)
        else:
            with content.open("rb") as file:
                how = repository.upload(blob.digest, file, mount=self.mount, progress=meter.sent)
        meter.passed(blob.size)
        setattr(moved, how, getattr(moved, how) + blob.size)

    def _manifests(
        self,
        repository: Repository,
        layout: Layout,
        image: Document,
        moved: Moved,
        meter: Meter,
        *,
        alone: bool,
    ) -> None:
        """The image, then its provenance, then the index around both.

        `alone`: the image's manifest only, where its index is there: a registry's garbage collection may forget what
        only an index points to.
        """
        documents = {d.digest: d for d in (image, *(() if alone else (*layout.attestations(), layout.top)))}
        for document in documents.values():
            for blob in () if document is image or document.is_index else _blobs(document.manifest()):
                self._send(repository, blob, layout.blob(blob), moved, meter)
            if not self.dry_run and not repository.has_manifest(document.digest):
                repository.put_manifest(document.digest, document)

    def _attach(self, repository: Repository, own: _Own, moved: Moved) -> None:
        quiet = Meter("", 0, lambda _: None)
        for blob, content in zip(_blobs(own.artifact.manifest()), (sbom.EMPTY_CONFIG, own.sbom), strict=True):
            self._send(repository, blob, content, moved, quiet)
        if not self.dry_run:
            repository.attach(own.artifact)

    def _sign(self, name: Reference, *digests: str) -> bool:
        if self.key is None:
            return False
        if not self.dry_run:
            references = [name.at(digest) for digest in dict.fromkeys(digests)]
            for signed in cosign.sign(references, self.key, self.env):
                self.say(f"signed {signed}")
        return True

    def _combined(
        self, repository: Repository, reference: Reference, staged: Sequence[Staged]
    ) -> tuple[Tag, Document]:
        """One index over all targets, in which each platform is there once; in the registry, but for its tag."""
        entries = sorted(
            (entry for one in staged for entry in _entries(one)),
            key=lambda e: (e.is_attestation, str(e.platform), e.digest),
        )
        index = Document(media_type=INDEX, raw=Index(manifests=tuple(entries)).raw())
        before = repository.manifest(str(reference.tag))
        same = before is not None and before.is_index and _images(before) == _images(index)
        state: TagState = "there" if same else "moved" if before else "new"
        tag = Tag(reference=reference, state=state, before=before.digest if before else None)
        if not self.dry_run and not same:
            repository.put_manifest(index.digest, index)
            self._sign(reference, index.digest)
        return tag, index

    def _move(self, repository: Repository, tag: Tag, top: Document, done: Sequence[Tag]) -> None:
        try:
            repository.put_manifest(str(tag.reference.tag), top)
        except RefusedError as e:
            if tag.before is None or e.status not in _UNMOVABLE:
                raise
            stand = f"; moved before that: {', '.join(str(t.reference) for t in done)}" if done else ""
            raise RegistryError(
                f"{tag.reference} stays at {tag.before}: the registry lets nobody move it: {e}{stand}",
                hint="have tags of this name made mutable there, or publish to another path; "
                f"what was to get it is there as {tag.reference.at(top.digest)}",
            ) from None


class Meter:
    """Says how much of a target has gone, every few seconds and no more often."""

    def __init__(self, target: str, total: int, say: Callable[[str], None]) -> None:
        self._target, self._total, self._say = target, total, say
        self._passed = self._now = 0
        self._begun = self._said = time.monotonic()

    def sent(self, number: int) -> None:
        """So many bytes more of the blob that is under way; less than 0 when they have to go again."""
        self._now += number
        now = time.monotonic()
        if now - self._said > _TELL_EVERY:
            self._said = now
            rate = (self._passed + self._now) / (now - self._begun)
            self._say(
                f"{self._target}: {human(self._passed + self._now)} of {human(self._total)}, {human(int(rate))}/s"
            )

    def passed(self, size: int) -> None:
        """A whole blob is there."""
        self._passed += size
        self._now = 0


@dataclass(frozen=True, kw_only=True)
class _Own:
    """What is attached to an image."""

    sbom: bytes
    artifact: Document

    @property
    def digest(self) -> str:
        return self.artifact.digest


def _read(plan: Plan, layout: Layout) -> tuple[Document, _Own]:
    """The image that is to be published, whole and the plan's own, and its SBOM."""
    try:
        image = layout.image(plan.platform)
        manifest = image.manifest()
        config = layout.config(manifest)
        for document in (manifest, *(d.manifest() for d in layout.attestations())):
            for blob in _blobs(document):
                layout.blob(blob)
        packages = layout.debian_packages(manifest)
    except UnsoundError as e:
        raise VerificationError(
            f"{plan.name}: what the engine gave out is not whole: {e}", hint="repeat the command"
        ) from None
    if config.platform != plan.platform or config.labels.get("imgbuild.plan") != plan.key:
        raise VerificationError(
            f"{plan.name}: what the engine gave out is for {config.platform}, with the plan "
            f"{config.labels.get('imgbuild.plan')}; asked for were {plan.platform} and {plan.key}"
        )
    text = sbom.make_sbom(plan, image.digest, packages)
    return image, _Own(sbom=text, artifact=sbom.artifact(text, image.descriptor()))


def _blobs(manifest: Manifest) -> tuple[Descriptor, ...]:
    """Each once, in the manifest's order."""
    return tuple({d.digest: d for d in (manifest.config, *manifest.layers)}.values())


def _images(document: Document) -> dict[str, str]:
    return {str(m.platform): m.digest for m in document.index().images}


def _only_image(document: Document) -> str | None:
    """The digest of the one platform's manifest; None where there are several."""
    if not document.is_index:
        return document.digest
    images = document.index().images
    return images[0].digest if len(images) == 1 else None


def _entries(staged: Staged) -> tuple[Descriptor, ...]:
    if staged.top.is_index:
        return staged.top.index().manifests
    system, _, architecture = staged.platform.partition("/")
    return (staged.top.descriptor(platform=Platform(os=system, architecture=architecture)),)
