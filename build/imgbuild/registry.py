"""One repository of a registry, by the OCI distribution API: manifests, blobs, tags, referrers.

With requests, and docker's own package for logins: why no client of others is
used stands in artifacts.py. Whoever calls puts `refusals.told` around it.
"""

from __future__ import annotations

import hashlib
import io
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from imgbuild.errors import UnsoundError
from imgbuild.manifests import INDEX, KINDS, Descriptor, Document, Index
from imgbuild.refusals import MISSING, RefusedError, SlowError
from imgbuild.transport import CHUNK, Connection, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from imgbuild.reference import Reference

_OK, _CREATED, _ACCEPTED, _PARTIAL, _UNSATISFIABLE = 200, 201, 202, 206, 416
_SMALL = 4_000_000  # bytes; registries take no larger manifest


class Repository:
    """A repository, for reading or for writing too. Close it, or use it as a context manager.

    Raises requests' own exceptions when the connection fails, RefusedError for an answer that is no success, and
    UnsoundError for content that is not what its digest says; `refusals.told` makes one RegistryError of them. What may
    pass is tried again as `patience` says, and told to `say`. Blobs of the repositories in `beside`, which are paths on
    the same registry, can be mounted.
    """

    def __init__(
        self,
        host: str,
        path: str,
        *,
        env: Mapping[str, str],
        actions: Literal["pull", "pull,push"] = "pull",
        beside: Sequence[str] = (),
        patience: Patience | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.host, self.path = host, path
        scopes = [f"repository:{path}:{actions}", *(f"repository:{other}:pull" for other in beside)]
        self.connection = Connection(host, scopes, env=env, patience=patience, say=say)

    @classmethod
    def of(
        cls,
        reference: Reference,
        *,
        env: Mapping[str, str],
        actions: Literal["pull", "pull,push"] = "pull",
        patience: Patience | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Self:
        return cls(reference.host, reference.path, env=env, actions=actions, patience=patience, say=say)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    # Manifests

    def has_manifest(self, name: str) -> bool:
        """Whether there is one of a tag or a digest."""
        url = self.url("manifests", name)
        answer = self._send("HEAD", url, {_OK, MISSING}, headers=_ACCEPT)
        kind = answer.headers.get("Content-Type", "")
        if answer.status_code == _OK and not kind.startswith("application/vnd."):
            raise RefusedError(_OK, "an answer, but not a registry's")
        return answer.status_code == _OK

    def manifest(self, name: str) -> Document | None:
        """The manifest or index of a tag or a digest, to the byte; None when there is none."""
        url = self.url("manifests", name)

        def get() -> Document | None:
            with self.connection.send("GET", url, {_OK, MISSING}, headers=_ACCEPT, stream=True) as answer:
                if answer.status_code == MISSING:
                    return None
                raw = b"".join(self._limited(answer, _SMALL))
                kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
                named = answer.headers.get("Docker-Content-Digest")
            document = Document(media_type=kind, raw=raw)
            wanted = {named or document.digest, name if ":" in name else document.digest}
            if wanted != {document.digest}:
                raise UnsoundError("its manifest is not what its digest says")
            return document

        found: Document | None = self.connection.attempts().run(get)
        return found

    def put_manifest(self, name: str, document: Document) -> bool:
        """Store a manifest under a tag or its digest; return whether the registry lists it as a referrer itself."""
        answer = self._send(
            "PUT",
            self.url("manifests", name),
            {_CREATED},
            body=document.raw,
            headers={"Content-Type": document.media_type},
        )
        return "OCI-Subject" in answer.headers

    def tags(self) -> tuple[str, ...]:
        """All of them, sorted; none where there is no such repository."""
        found: list[str] = []
        url: str | None = f"{self.url('tags', 'list')}?n=1000"
        while url:
            answer = self._send("GET", url, {_OK, MISSING})
            if answer.status_code == MISSING:
                break
            try:
                found += answer.json().get("tags") or []
            except (ValueError, AttributeError):
                raise RefusedError(_OK, "an answer, but not a registry's") from None
            following = answer.links.get("next", {}).get("url")
            url = self._own(following) if following else None
        return tuple(sorted(set(found)))

    def referrers(self, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """What is attached to a manifest: SBOMs, signatures; by the API, or by its tag where there is none."""
        url = self.url("referrers", digest)
        answer = self._send("GET", url, {_OK, MISSING, 400, 405}, headers={"Accept": INDEX})
        if answer.status_code == _OK and answer.headers.get("Content-Type", "").startswith(INDEX):
            found = Document(media_type=INDEX, raw=answer.content).index().manifests
        else:
            found = self._listed(digest).manifests
        return tuple(d for d in found if artifact_type in (None, d.artifact_type))

    def attach(self, document: Document) -> str:
        """Store a manifest that has a subject, and have it found from there; return its digest.

        A registry without the referrers API gets the index that the specification names for it, under the tag
        `sha256-<subject>`.
        """
        manifest = document.manifest()
        if manifest.subject is None:
            raise UnsoundError("what is attached names no subject")
        subject, digest = manifest.subject.digest, document.digest
        if self.has_manifest(digest) and digest in {d.digest for d in self.referrers(subject)}:
            return digest
        if not self.put_manifest(digest, document):
            index = self._listed(subject)
            own = document.descriptor(
                artifact_type=manifest.artifact_type or manifest.config.media_type,
                annotations=manifest.annotations,
            )
            others = tuple(d for d in index.manifests if d.digest != digest)
            index = index.model_copy(update={"manifests": (*others, own)})
            self.put_manifest(_referrers_tag(subject), Document(media_type=INDEX, raw=index.raw()))
        return digest

    def _listed(self, digest: str) -> Index:
        there = self.manifest(_referrers_tag(digest))
        return there.index() if there else Index(manifests=())

    # Blobs

    def has_blob(self, digest: str) -> bool:
        return self._send("HEAD", self.url("blobs", digest), {_OK, MISSING}).status_code == _OK

    def read(self, blob: Descriptor) -> bytes:
        """A small blob: a configuration, an SBOM."""
        if blob.size > _SMALL:
            raise UnsoundError(f"a configuration of {blob.size} bytes")
        buffer = io.BytesIO()
        self.download(blob, buffer)
        return buffer.getvalue()

    def download(
        self, blob: Descriptor, file: IO[bytes], progress: Callable[[int], None] | None = None
    ) -> None:
        """Write a blob to a file that is open at its beginning; goes on where a broken connection left off.

        `progress` is called with the bytes that came, piece by piece. Whoever catches an error throws the file away.
        """
        hashed, attempts, there = hashlib.sha256(), self.connection.attempts(), 0
        while there < blob.size or not there:
            before = there
            try:
                for piece in self._pieces(blob, there):
                    hashed.update(piece)
                    file.write(piece)
                    there += len(piece)
                    if progress:
                        progress(len(piece))
                if there == before:  # an end where none is
                    break
            except (requests.RequestException, RefusedError) as e:
                if there > before and not isinstance(e, SlowError):
                    attempts.progressed()
                attempts.failed(e)
        if blob.digest != f"sha256:{hashed.hexdigest()}":
            short = f", and only {there} of {blob.size}" if there < blob.size else ""
            raise UnsoundError(f"{blob.digest} has other bytes than its digest says{short}")

    def _pieces(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """A blob from a byte on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        good = {_OK, MISSING, _PARTIAL, _UNSATISFIABLE} if start else {_OK, MISSING}
        url = self.url("blobs", blob.digest)
        with self.connection.send("GET", url, good, headers=headers, stream=True) as answer:
            if answer.status_code == MISSING:
                raise UnsoundError(f"{blob.digest} is missing")
            if answer.status_code == _UNSATISFIABLE:
                return
            skip = start if answer.status_code == _OK else 0  # who knows no ranges begins again
            for piece in self._limited(answer, blob.size - start + skip):
                dropped = min(skip, len(piece))
                skip -= dropped
                if dropped < len(piece):
                    yield piece[dropped:]

    def upload(
        self,
        digest: str,
        body: bytes | IO[bytes],
        *,
        mount: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Literal["there", "mounted", "sent"]:
        """Store a blob, unless it is there; `mount` is the path of a repository beside that may have it.

        A broken upload begins again. `progress` is called with the bytes that went, and with less than 0 when what
        went has to go again.
        """
        if self.has_blob(digest):
            return "there"
        if mount and self.mount(digest, mount):
            return "mounted"
        sent = _Sent(io.BytesIO(body) if isinstance(body, bytes) else body, progress)

        def send() -> None:
            begun = self.connection.send("POST", self.url("blobs", "uploads/"), {_ACCEPTED}, body=b"")
            place = self._own(begun.headers.get("Location", ""))
            place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": digest})
            octets = {"Content-Type": "application/octet-stream"}
            self.connection.send("PUT", place, {_CREATED}, body=sent, headers=octets)  # type: ignore[arg-type]

        self.connection.attempts().run(send)
        return "sent"

    def mount(self, digest: str, other: str) -> bool:
        """Have a blob of another repository of this registry here too; whether it could be had."""
        query = urlencode({"mount": digest, "from": other})
        url = f"{self.url('blobs', 'uploads/')}?{query}"
        answer = self._send("POST", url, {_CREATED, _ACCEPTED}, body=b"")
        if answer.status_code == _ACCEPTED and "Location" in answer.headers:  # an upload was begun instead
            self._send("DELETE", self._own(answer.headers["Location"]), {200, 202, 204, MISSING, 405})
        return answer.status_code == _CREATED

    # Requests

    def url(self, kind: str, name: str) -> str:
        return f"{self.connection.origin}/v2/{self.path}/{kind}/{name}"

    def _own(self, location: str) -> str:
        """Where a registry points to, absolute."""
        origin = self.connection.origin
        place = urljoin(f"{origin}/", location)
        parts = urlsplit(place)
        if (
            parts.netloc == urlsplit(origin).netloc
        ):  # behind a proxy, some registries forget that they are HTTPS
            place = f"{origin}{place.removeprefix(f'{parts.scheme}://{parts.netloc}')}"
        return place

    def _send(
        self,
        method: str,
        url: str,
        good: set[int],
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """One request of which nothing is left when it fails, tried again where that may help."""
        answer: requests.Response = self.connection.attempts().run(
            lambda: self.connection.send(method, url, good, body=body, headers=headers)
        )
        return answer

    def _limited(self, answer: requests.Response, size: int) -> Iterator[bytes]:
        """The body, of which no more than `size` bytes are read."""
        for piece in self.connection.pieces(answer):
            size -= len(piece)
            if size < 0:
                raise UnsoundError("the registry sends more than it announced")
            yield piece


_ACCEPT = {"Accept": ", ".join(KINDS)}


class _Sent:
    """A file whose reading is counted; read from its beginning again, what was counted is taken back."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], None] | None) -> None:
        self._file, self._progress, self._counted = file, progress, 0
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(CHUNK):
            yield piece

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._count(len(piece))
        return piece

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if (place, whence) == (0, io.SEEK_SET):
            self._count(-self._counted)
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _count(self, number: int) -> None:
        self._counted += number
        if self._progress and number:
            self._progress(number)


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")
