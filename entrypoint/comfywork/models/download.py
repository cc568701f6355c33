"""One file from a server into its place: whole and proven, or not at all.

huggingface_hub's own downloader is not used for the bytes: it resumes without If-Range, compares sizes and no SHA-256,
waits for Retry-After only within limits of its own, and places the file by way of its cache.
"""

from __future__ import annotations

import contextlib
import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from comfywork.models.errors import PlaceError, StoppedError, UnreachableError, WrongFileError
from comfywork.models.part import Part, State
from comfywork.models.wire import Patience, Told, TransientError, range_start, request
from comfywork.quantities import human

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    import httpx


@dataclass(frozen=True, kw_only=True)
class Want:
    """A file to fetch. One of `size` and `sha256` may be unknown; with neither, the server has to say the size."""

    label: str
    target: Path
    url: str
    source: str
    """Without what may be secret in an address."""
    size: int | None = None
    sha256: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Got:
    size: int
    sha256: str
    taken_up: int
    """Bytes that an earlier run had left."""
    failures: int
    """Times that the server failed or broke off."""
    seconds: float


class Meter(Protocol):
    """Who watches."""

    def at(self, offset: int, size: int | None) -> None: ...
    def hashed(self, count: int) -> None: ...
    def said(self, text: str) -> None: ...


def fetch(http: httpx.Client, want: Want, meter: Meter, stop: threading.Event, patience: Patience) -> Got:
    """Raises WrongFileError, DeniedError, UnreachableError, PlaceError, StoppedError.

    Under the final name stands the right file or what stood there before. The part is kept whenever going on with it
    can make the right file.
    """
    try:
        with Part(want.target) as part:
            return _Fetch(http, want, part, meter, stop, patience).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlaceError(
                f"{want.target.parent}: no room left; the part is kept",
                hint="make room and run the same command again",
            ) from None
        if error.errno == errno.ELOOP:
            raise PlaceError(f"{want.target}.part is a link: remove it") from None
        raise PlaceError(f"{error.filename or want.target}: {error.strerror or error}") from None


class _Fetch:
    def __init__(
        self,
        http: httpx.Client,
        want: Want,
        part: Part,
        meter: Meter,
        stop: threading.Event,
        patience: Patience,
    ) -> None:
        self._http, self._want, self._part, self._meter = http, want, part, meter
        self._stop, self._patience = stop, patience
        self._size = want.size
        self._best = 0
        self._row = 0
        self._failures = 0
        self._odd_sizes = 0
        self._answers = 0
        """Responses that the bytes are of; an earlier run's count as two, since nobody knows."""

    def run(self) -> Got:
        began = time.monotonic()
        taken_up = self._take_up()
        clean = False
        while True:
            while not self._whole():
                self._attempt()
            if self._want.sha256 in (None, self._part.sha256):
                break
            found = self._part.sha256
            if clean or self._answers == 1:
                self._part.discard()
                raise WrongFileError(
                    f"the server's file is another one: sha256 {found}, the list says {self._want.sha256}; "
                    "nothing was kept of it"
                )
            clean = True
            self._restart("the pieces do not make the file: once more from the beginning")
        self._part.finish()
        return Got(
            size=self._part.offset,
            sha256=self._part.sha256,
            taken_up=taken_up,
            failures=self._failures,
            seconds=time.monotonic() - began,
        )

    def _take_up(self) -> int:
        def read(count: int) -> None:
            self._meter.hashed(count)
            self._check_stop()

        self._fresh = State(source=self._want.source, sha256=self._want.sha256, size=self._want.size)
        kept = self._part.take_up(self._fresh, read)
        assert self._part.state is not None
        if kept and not self._want.sha256:
            self._size = self._part.state.size
        self._best = kept
        self._answers = 2 if kept else 0
        self._meter.at(kept, self._size)
        return kept

    def _whole(self) -> bool:
        if self._size is not None:
            return self._part.offset == self._size
        # Only the hash can say.
        return self._part.offset > 0 and self._part.sha256 == self._want.sha256

    def _attempt(self) -> None:
        """One request; what may pass is waited for, the rest raised."""
        try:
            self._request()
        except TransientError as error:
            self._wait(error)
        except StoppedError:
            self._save()
            raise

    def _wait(self, error: TransientError) -> None:
        self._failures += 1
        self._row = 1 if self._part.offset > self._best else self._row + 1
        self._best = max(self._best, self._part.offset)
        if self._row > self._patience.failures:
            self._save()
            raise UnreachableError(
                f"{error} ({self._row} times in a row, at {human(self._part.offset)})",
                hint="what was fetched is kept: the same command goes on from there",
            ) from error
        pause = self._patience.pause(self._row, error.after)
        self._meter.said(f"{error}; again in {pause:.1f} s from {human(self._part.offset)}")
        if self._stop.wait(pause):
            self._save()
            raise StoppedError("stopped") from None

    def _request(self) -> None:
        part = self._part
        assert part.state is not None
        if part.offset and not self._want.sha256 and part.state.etag is None:
            self._restart("the server gives no ETag, so what was fetched may be of another version")
        headers = {}
        if part.offset:
            headers["Range"] = f"bytes={part.offset}-"
            if part.state.etag:
                headers["If-Range"] = part.state.etag
        with request(self._http, "GET", self._want.url, headers, self._want.token) as (response, told):
            if response.status_code == 416:  # noqa: PLR2004
                self._changed("the server's file ends before what was fetched of it")
                raise TransientError("the server has no such range")
            self._compare(told)
            if "content-encoding" in response.headers:
                raise WrongFileError("the server sends the file compressed, though it was asked not to")
            self._position(response, told)
            if self._size is None:
                if told.size is None and not self._want.sha256:
                    raise WrongFileError(
                        "the server does not say how long the file is: give its size or sha256 in the list"
                    )
                self._size = told.size
            part.learned(etag=told.etag, size=self._size)
            self._answers += 1
            self._receive(response)
        if not self._whole():
            raise TransientError("the server ended in the middle of the file")

    def _receive(self, response: httpx.Response) -> None:
        self._check_stop()
        for block in response.iter_raw():
            self._check_stop()
            if self._size is not None and self._part.offset + len(block) > self._size:
                self._part.discard()
                raise WrongFileError(f"the server sends more than the {self._size:,} bytes that the file has")
            self._part.write(block)
            self._meter.at(self._part.offset, self._size)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError("stopped")

    def _compare(self, told: Told) -> None:
        """What the headers say against what is wanted."""
        want = self._want
        if want.sha256 and told.sha256 and told.sha256 != want.sha256:
            self._part.discard()
            raise WrongFileError(
                f"changed at the server: it now has sha256 {told.sha256}, the list says {want.sha256}"
            )
        if self._size is not None and told.size is not None and told.size != self._size:
            self._odd_sizes += 1
            if self._odd_sizes == 1:
                # One proxy's mistake, perhaps.
                raise TransientError(f"the server speaks of {told.size:,} bytes, not {self._size:,}")
            self._part.discard()
            said = "the list says" if want.size else "it was, when it was begun,"
            raise WrongFileError(f"changed at the server: {told.size:,} bytes, {said} {self._size:,}")
        self._odd_sizes = 0

    def _position(self, response: httpx.Response, told: Told) -> None:
        """Make the file's offset that of the first byte to come."""
        part = self._part
        assert part.state is not None
        known = part.state.etag
        other = known is not None and told.etag is not None and known != told.etag
        if response.status_code == 206:  # noqa: PLR2004
            if range_start(response) != part.offset:
                self._restart("the server sends another piece than was asked for")
                raise TransientError("the server's answer does not fit what was asked for")
            if other or (not self._want.sha256 and told.etag is None):
                self._changed(f"the server's ETag was {known}, and is {told.etag}")
                raise TransientError("the server's file is no longer what it was")
        elif part.offset:
            if other or not self._want.sha256:
                self._changed(f"the server's ETag was {known}, and is {told.etag}")
            self._restart("the server does not go on in the middle: from the beginning")

    def _changed(self, how: str) -> None:
        """Refuse where nothing but the server could say which version is right; else the hash decides."""
        if self._want.sha256:
            self._restart(f"{how}: from the beginning, and the hash decides")
            return
        self._part.discard()
        raise WrongFileError(
            f"changed at the server while it was fetched: {how}; nothing was kept",
            hint="the same command fetches the new one; to refuse new ones, lock the list (comfyrun models lock)",
        )

    def _restart(self, why: str) -> None:
        if self._part.offset:
            self._meter.said(why)
        self._part.restart(self._fresh)
        self._answers = 0
        self._meter.at(0, self._size)

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            self._part.checkpoint()
