"""/data/comfyrun.env: settings for those who cannot set variables.

A line is `NAME=value`; a value may stand in quotes, single or double, which then enclose all of it. `#` begins a
comment at the start of a line or after a space. Nothing in a value is expanded.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "comfyrun.env"

_LIMIT = 1 << 20
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMENT = re.compile(r"(^|[ \t])#.*$")
_AFTER_QUOTE = re.compile(r"[ \t]*(#.*)?")


@dataclass(frozen=True, kw_only=True)
class EnvFile:
    path: str
    variables: Mapping[str, str]


def read(path: Path) -> EnvFile | None:
    """The variables in `path`, or None when there is no such file. Raises ConfigError with every mistake in it."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ConfigError(
                f"{path} is a directory (an engine makes one where the file to mount is missing): "
                "remove it, and put a file with lines NAME=value there"
            )
        if not stat.S_ISREG(kind):
            raise ConfigError(f"{path} is not a file: a pipe or a device cannot be read as one")
        with path.open("rb") as stream:
            raw = stream.read(_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{path} cannot be read: {why}. Mend it (chmod a+r), or take it away to start without it"
        ) from None
    if len(raw) > _LIMIT:
        raise ConfigError(f"{path} is larger than 1 MiB: it holds lines NAME=value, and nothing else")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: is not UTF-8") from None
    return EnvFile(path=str(path), variables=parse(text, str(path)))


def parse(text: str, source: str) -> dict[str, str]:
    """The variables in `text`. Values are never shown in messages: they may be secrets."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    mistakes: list[str] = []
    # Not splitlines(): a form feed or a Unicode line separator inside a value ends no line.
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        try:
            pair = _pair(raw.strip(" \t"))
            if pair is None:
                continue
        except ValueError as error:
            mistakes.append(f"{source}, line {number}: {error}")
            continue
        name, value = pair
        if name in found:
            mistakes.append(f"{source}, line {number}: {name} stands in line {lines[name]} already")
        found[name], lines[name] = value, number
    if mistakes:
        raise ConfigError(*mistakes)
    return found


def _pair(line: str) -> tuple[str, str] | None:
    if not line or line.startswith("#"):
        return None
    name, equals, value = line.partition("=")
    name = name.removeprefix("export ").strip(" \t")
    if not equals:
        raise ValueError("has no `=`; a line is NAME=value")
    if not _VARIABLE.fullmatch(name):
        raise ValueError("what stands before the `=` is no variable's name")
    if "\0" in value:
        raise ValueError(f"{name} holds a NUL, which no variable can")
    return name, _value(name, value.strip(" \t"))


def _value(name: str, text: str) -> str:
    if text[:1] not in ("'", '"'):
        return _COMMENT.sub("", text).rstrip(" \t")
    quote = text[0]
    end = text.find(quote, 1)
    if end < 0:
        raise ValueError(f"{name}: a quote ({quote}) is opened and not closed")
    if not _AFTER_QUOTE.fullmatch(text, end + 1):
        raise ValueError(
            f"{name}: something follows the closing quote; put the other kind of quotes around all of it"
        )
    return text[1:end]
