"""Log lines: comfyrun's own, and ComfyUI's on their way through.

As text ComfyUI's bytes pass unchanged, as they come. As JSON each line becomes an object of its own.
Values of secrets are blotted out of both.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import threading
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Mode = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error", "critical"]

_CHUNK = 65536
_LONGEST = 16384  # bytes of a line, beyond which it is cut into several

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEVEL = re.compile(r"\[(DEBUG|DETAIL|INFO|WARNING|ERROR|CRITICAL)\] ")


class Log:
    """Where lines go. Written with one system call a line, so that threads do not cut into one another."""

    def __init__(
        self, mode: Mode = "text", hidden: Iterable[str] = (), *, out: int = 1, err: int = 2
    ) -> None:
        self.mode = mode
        self._files = {"stdout": out, "stderr": err}
        self._hidden = [(text, text.encode("utf-8", "surrogateescape")) for text in hidden]
        self._open_line = False

    def say(self, message: str, level: Level = "info", **details: object) -> None:
        """A line of comfyrun's own. `details` are only in the JSON."""
        message = self.hide(message)
        if self.mode == "json":
            self._object("stderr", "comfyrun", level, message, details)
            return
        # ComfyUI may just be in the middle of a progress bar.
        begin = "\n" if self._open_line else ""
        self._open_line = False
        text = f"{begin}comfyrun: {message}\n"
        write(self._files["stderr"], text.encode("utf-8", "backslashreplace"))

    def passed(self, data: bytes, stream: str) -> None:
        """Text of ComfyUI's, as it came."""
        self._open_line = not data.endswith(b"\n")
        for _, hidden in self._hidden:
            data = data.replace(hidden, b"***")
        write(self._files[stream], data)

    def line(self, text: str, stream: str) -> None:
        """A whole line of ComfyUI's, as JSON."""
        tag = _LEVEL.match(text)
        level = tag[1].lower().replace("detail", "debug") if tag else "info"
        self._object(stream, "comfyui", level, self.hide(text[tag.end() :] if tag else text), {})

    def relayed(self, source: str, text: str, stream: str) -> None:
        """A whole line of another child's, with its name before it; a line of JSON stays one."""
        if not text.strip():
            return
        if self.mode == "json":
            if text.startswith("{"):
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(self.hide(text))
                    if isinstance(value, dict):
                        write(self._files[stream], json.dumps({"source": source, **value}).encode() + b"\n")
                        return
            tag = _LEVEL.match(text)
            level = tag[1].lower() if tag else "info"
            self._object(stream, source, level, self.hide(text[tag.end() :] if tag else text), {})
            return
        begin = "\n" if self._open_line else ""
        self._open_line = False
        line = f"{begin}{source}: {self.hide(text)}\n"
        write(self._files[stream], line.encode("utf-8", "backslashreplace"))

    def hide(self, text: str) -> str:
        for hidden, _ in self._hidden:
            text = text.replace(hidden, "***")
        return text

    def _object(self, stream: str, source: str, level: str, message: str, details: dict[str, object]) -> None:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        value = {"time": now.replace("+00:00", "Z"), "level": level, "source": source, "message": message}
        write(self._files[stream], json.dumps(value | details).encode() + b"\n")


def write(file: int, data: bytes) -> None:
    """All of `data`. When nobody reads any more it is dropped: that must not end the server."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(file, data) :]


class Lines:
    """Cuts a stream of bytes into lines, as a terminal would show them: of a progress bar, its last state."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._give(line)
        if len(self._rest) > _LONGEST:
            if b"\r" in self._rest:  # a progress bar that has not ended yet
                self._rest = self._rest[self._rest.rindex(b"\r") :]
            while len(self._rest) > _LONGEST:
                self._give(self._rest[:_LONGEST])
                self._rest = self._rest[_LONGEST:]

    def end(self) -> None:
        if self._rest:
            self._give(self._rest)
        self._rest = b""

    def _give(self, line: bytes) -> None:
        shown = line.removesuffix(b"\r").rpartition(b"\r")[2]
        self._take(_COLOUR.sub("", shown.decode("utf-8", "backslashreplace")))


class Relay(threading.Thread):
    """Passes one stream of ComfyUI's on, and shows each line to `watch`.

    A thread of its own: a reader of our log who pauses must hold up ComfyUI, as ever, and not our signals.
    """

    def __init__(self, source: IO[bytes], stream: str, log: Log, watch: Callable[[str], None]) -> None:
        super().__init__(name=f"relay {stream}", daemon=True)
        self._source, self._stream, self._log, self._watch = source, stream, log, watch

    def run(self) -> None:
        lines = Lines(self._line)
        while True:
            try:
                data = os.read(self._source.fileno(), _CHUNK)
            except OSError:
                data = b""
            if not data:
                break
            if self._log.mode == "text":
                self._log.passed(data, self._stream)
            lines.feed(data)
        lines.end()

    def finish(self, timeout: float) -> None:
        """Waits for the rest of the stream, so long at most."""
        self.join(timeout)
        if not self.is_alive():
            self._source.close()

    def _line(self, text: str) -> None:
        if self._log.mode == "json" and text.strip():
            self._log.line(text, self._stream)
        self._watch(text)
