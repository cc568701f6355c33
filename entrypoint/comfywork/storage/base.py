"""Where outputs and inputs lie: what every storage does, whichever it is.

An output is *staged* under the fencing token of the lease that made it, and *published* when the queue has sealed the
job's manifest. Only a sealed token is ever published, so whoever finds a final object finds that token's; publishing may
be repeated by anyone, any number of times, after a kill at any point.

There is no input by address: nothing here fetches a URL that a caller names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from comfywork.names import check_job
from comfywork.storage import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one output belongs. Raises ConfigError when a part is no name."""

    tenant: str
    job: str
    token: int
    name: str

    def __post_init__(self) -> None:
        names.check_key(self.key)
        check_job(self.job)
        names.staging_of(self.tenant, self.job, self.token)

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.job}/{self.name}"

    @property
    def staged(self) -> str:
        return names.staging_of(self.tenant, self.job, self.token) + self.name


@dataclass(frozen=True, kw_only=True)
class Stored:
    """`size` in bytes, `sha256` in hex; `media_type` is what the content is, not what the caller called it."""

    key: str
    size: int
    sha256: str
    media_type: str


@dataclass(frozen=True, kw_only=True)
class ListedObject:
    """`size` in bytes, `modified` in seconds since 1970 by the storage's clock."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep took away, or would take."""

    objects: int = 0
    size: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(objects=self.objects + other.objects, size=self.size + other.size)


class OpenedObject(Protocol):
    """An object being read. A download that ends early raises StorageError; it never looks like a short object."""

    @property
    def size(self) -> int: ...
    @property
    def media_type(self) -> str: ...
    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Storage(Protocol):
    """Every method raises StorageError, and ConfigError for what is no key. Instances may be used by several threads."""

    @property
    def name(self) -> str:
        """volume, s3 or queue."""
        ...

    def stage(self, place: Place, content: BinaryIO, size: int | None, media_type: str) -> Stored:
        """Keep `content`, whole and on disk, where only `publish` finds it. Staging a place again replaces it.

        `size` in bytes when it is known: content of another size is an error. `media_type` is what the caller takes
        it for; what is stored is decided by the content. Errors of `content.read` come through as they are. Nothing
        stays behind when it fails.
        """
        ...

    def publish(self, places: Sequence[Place]) -> None:
        """Move each from its staged to its final key. Idempotent; MissingError when one is at neither."""
        ...

    def discard(self, tenant: str, job: str, token: int) -> None:
        """Take away all that this token has staged."""
        ...

    def sweep_staging(
        self, older_than: float, held: Callable[[str, str], bool] = ..., *, dry_run: bool = False
    ) -> Swept:
        """Take away what killed workers left: staged more than `older_than` seconds ago by the storage's own clock.

        What `held(tenant, job)` says yes to stays. Inputs that were being stored have the job `inputs`.
        """
        ...

    def open(self, key: str) -> OpenedObject:
        """Raises MissingError. The caller closes it."""
        ...

    def delete(self, key: str) -> None:
        """What is not there is deleted already."""
        ...

    def keys(self, prefix: str) -> Iterator[ListedObject]:
        """What is published, and inputs, whose key begins with `prefix`. Never staged ones.

        A job's keys come one after the other; beyond that the order is the storage's own.
        """
        ...

    def put_input(
        self, tenant: str, name: str, content: BinaryIO, size: int | None, media_type: str
    ) -> Stored:
        """Keep an input. Its key holds a hash of its content: the same file twice is one object."""
        ...

    def link(self, key: str, seconds: int) -> str | None:
        """An address that a browser may read the object from for so long; None where this storage has none."""
        ...

    def now(self) -> float:
        """The storage's own clock, in seconds since 1970."""
        ...

    def check(self) -> None:
        """Write, move, read and delete a small object. Raises StorageError with the cause and the next step."""
        ...


def nobody_holds(tenant: str, job: str) -> bool:  # noqa: ARG001
    """The `held` of a sweep where age alone decides."""
    return False
