"""Reading text: UTF-8 whatever the locale, and line ends as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read_text(path: Path) -> str:
    """A file's text; ConfigError when it is not UTF-8, OSError when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text (byte {e.start})") from None
