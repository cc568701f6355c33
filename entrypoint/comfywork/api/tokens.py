"""Who may do what: one bearer token a tenant, of which only the SHA-256 is kept.

TOKENS_FILE is YAML; a tenant's entry is its token's hash, or a table:

    user001: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    user002:
      sha256: [..., ...]   # two while one is being replaced
      priority: normal     # the highest that it may ask for
      rate: 30             # jobs a minute
      depth: 20            # jobs waiting
    staff:
      sha256: ...
      admin: true          # sees and changes what is any tenant's

A token is 32 random bytes, so that a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from comfywork import names
from comfywork.errors import ComfyworkError, ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from comfywork.names import Priority

PREFIX = "cw_"  # so that a scanner of secrets knows one when it sees one
_FRESH = 1.0  # seconds between two looks whether the file has changed
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("sha256", "priority", "rate", "depth", "admin")


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a token allows. `rate` in jobs a minute and `depth` in waiting jobs; None for the queue's own limits."""

    tenant: str
    hashes: tuple[str, ...]
    ceiling: Priority = "high"
    rate: float | None = None
    depth: int | None = None
    admin: bool = False

    def allows(self, priority: Priority) -> bool:
        return names.PRIORITIES.index(priority) >= names.PRIORITIES.index(self.ceiling)


class Tokens:
    """The file, read again when it has changed. A file that became wrong keeps what it said before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._looked = 0.0
        self._mark: tuple[int, int, int] | None = None
        self._grants: tuple[Grant, ...] = ()
        self.mistake = ""
        """Why the file as it is now does not count."""
        self._read()

    def grant(self, token: str) -> Grant | None:
        """Every hash is compared, in the same time whichever it is."""
        self._fresh()
        given = hash_of(token)
        found = None
        for grant in self._grants:
            for known in grant.hashes:
                if hmac.compare_digest(known, given):
                    found = grant
        return found

    def _fresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked < _FRESH:
                return
            self._looked = time.monotonic()
            try:
                if self._marked() != self._mark:
                    self._read()
                self.mistake = ""
            except ComfyworkError as error:
                self.mistake = str(error)

    def _marked(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigError(f"TOKENS_FILE={self._path}: {error.strerror}", hint=_MAKE) from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        mark = self._marked()
        self._grants = parse(_text(self._path), str(self._path))
        self._mark = mark


_MAKE = "comfyrun api token TENANT makes a token, and the file"


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def parse(text: str, where: str) -> tuple[Grant, ...]:
    """ConfigError with every mistake in it."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: no YAML ({getattr(error, 'problem', error)})") from None
    if found is None:
        raise ConfigError(f"{where} holds no token", hint=_MAKE)
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: a table of tenants is wanted", hint=_MAKE)
    mistakes: list[str] = []
    grants = []
    for tenant, entry in found.items():
        try:
            grants.append(_grant(tenant, entry))
        except ComfyworkError as error:
            mistakes += [f"{where}, {tenant}: {message}" for message in error.messages]
    if not mistakes:
        mistakes = [f"{where}: {both} have the same token" for both in _shared(grants)]
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(grants)


def _shared(grants: list[Grant]) -> Iterator[str]:
    first: dict[str, str] = {}
    for grant in grants:
        for known in grant.hashes:
            if known in first:
                yield f"{first[known]} and {grant.tenant}"
            first[known] = grant.tenant


def _grant(tenant: object, entry: object) -> Grant:
    if not isinstance(tenant, str):
        raise ConfigError("a tenant is text: put it into quotes")
    names.check_tenant(tenant)
    table: Mapping[str, Any] = {"sha256": entry} if isinstance(entry, (str, list)) else entry  # type: ignore[assignment]
    if not isinstance(table, dict):
        raise ConfigError("its token's sha256, or a table, is wanted")
    for name in table:
        if name not in _FIELDS:
            raise ConfigError(f"no setting {name!r}{nearest(str(name), _FIELDS)}: {', '.join(_FIELDS)}")
    hashes = table.get("sha256")
    hashes = [hashes] if isinstance(hashes, str) else hashes
    if not isinstance(hashes, list) or not hashes or not all(_is_hash(known) for known in hashes):
        raise ConfigError("sha256 is 64 digits of 0 to 9 and a to f, in quotes where they are all digits")
    ceiling = table.get("priority", "high")
    if ceiling not in names.PRIORITIES:
        raise ConfigError(f"no priority {ceiling!r}: {', '.join(names.PRIORITIES)}")
    rate, depth, admin = table.get("rate"), table.get("depth"), table.get("admin", False)
    if not _is_number(rate, float) or not _is_number(depth, int):
        raise ConfigError("rate (jobs a minute) and depth (jobs waiting) are numbers above 0")
    if not isinstance(admin, bool):
        raise ConfigError("admin is true or false")
    return Grant(tenant=tenant, hashes=tuple(hashes), ceiling=ceiling, rate=rate, depth=depth, admin=admin)


def _is_hash(found: object) -> bool:
    return isinstance(found, str) and _HASH.fullmatch(found) is not None


def _is_number(found: object, kind: type[float]) -> bool:
    if found is None:
        return True
    kinds = (int, float) if kind is float else (int,)
    return isinstance(found, kinds) and not isinstance(found, bool) and 0 < found < 1e9  # noqa: PLR2004


def make(path: Path, tenant: str, more: Mapping[str, object], *, replace: bool = False) -> str:
    """A new token for a tenant, written into the file; the token itself is kept nowhere.

    With `replace` the tenant's tokens before end; without, a tenant that has one is a ConfigError.
    """
    names.check_tenant(tenant)
    token = PREFIX + secrets.token_urlsafe(32)
    with _locked(path):
        before = _text(path) if path.exists() else _HEAD
        if path.exists():
            parse(before, str(path)) if yaml.safe_load(before) else None
        known = yaml.safe_load(before) or {}
        if tenant in known and not replace:
            raise ConfigError(
                f"{tenant} has a token", hint="--replace makes another, and ends the one before"
            )
        settings = {**_kept(known.get(tenant)), **more}
        lines = [f"{tenant}:", f'  sha256: "{hash_of(token)}"']
        lines += [f"  {name}: {str(value).lower()}" for name, value in settings.items()]
        text = _without(before, tenant).rstrip("\n") + "\n" + "\n".join(lines) + "\n"
        parse(text, str(path))
        part = path.with_name(f".{path.name}.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        part.replace(path)
    return token


_HEAD = "# One bearer token a tenant, as SHA-256; docs/queue.md. `comfyrun api token TENANT` adds one.\n"


def _kept(entry: object) -> dict[str, object]:
    return (
        {name: value for name, value in entry.items() if name != "sha256"} if isinstance(entry, dict) else {}
    )


def _without(text: str, tenant: str) -> str:
    """The text without a tenant's entry; comments elsewhere stay."""
    kept, inside = [], False
    for line in text.splitlines():
        if re.match(r"\S", line):
            inside = re.match(rf"""["']?{re.escape(tenant)}["']?\s*:""", line) is not None
        if not inside:
            kept.append(line)
    return "\n".join(kept)


class _locked:  # noqa: N801 - reads as a word
    """One writer at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")

    def __enter__(self) -> None:
        try:
            self._file = self._path.open("w")
        except OSError as error:
            raise ConfigError(f"{self._path.parent}: {error.strerror}") from None
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"TOKENS_FILE={path} cannot be read: {getattr(error, 'strerror', None) or error}", hint=_MAKE
        ) from None
