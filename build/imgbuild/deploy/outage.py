"""How long a server did not answer, seen from outside."""

from __future__ import annotations

import http.client
import threading
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

_EVERY = 0.1
_PATIENCE = 2.0


class Outage:
    """Asks a URL ten times a second, in a thread, from `with` to its end."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._answers: list[tuple[float, bool]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> float | None:
        """From the last answer before the first silence to the answer after the last; None where nobody answered."""
        good = [when for when, answered in self._answers if answered]
        bad = [when for when, answered in self._answers if not answered]
        if not good:
            return None
        if not bad:
            return 0.0
        before = [when for when in good if when < bad[0]]
        after = [when for when in good if when > bad[-1]]
        return after[0] - before[-1] if before and after else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(2 * _EVERY)  # one answer after the last change
        self._ended.set()
        self._thread.join(_PATIENCE * 2)

    def _watch(self) -> None:
        while not self._ended.is_set():
            when = time.monotonic()
            self._answers.append((when, self._ask()))
            self._ended.wait(max(0.0, when + _EVERY - time.monotonic()))

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_PATIENCE)
        try:
            connection.request("GET", "/prompt")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
