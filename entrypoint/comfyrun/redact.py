"""Keeps secrets out of everything that is shown: by the name they go under, by their form, by their value."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HIDDEN = "***"

_WORD = r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|KEY|APIKEY|CREDENTIALS?|AUTH|AUTHORIZATION|COOKIE|PAT|DSN)S?"
_NAME = re.compile(rf"(?:^|[_-]){_WORD}(?:$|[_-])", re.IGNORECASE)
# These say where a secret lies, which is no secret.
_PLACE = re.compile(r"(?:_|-)?(?:FILE|PATH|DIR|DIRECTORY)$|^COMFY_TLS_|^(?:OLD)?PWD$", re.IGNORECASE)

_FORMS = (
    re.compile(r"(?<=://)[^/\s]+(?=@)"),  # who:what@ in an address
    re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bgh[pousr]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w-]{8,}"),
    re.compile(r"\bsk-[\w-]{8,}|\bxox[abprs]-[\w-]{8,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bAIza[\w-]{20,}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # a JSON web token
    re.compile(r"(?<=\bBearer )\S+|(?<=\bBasic )\S+", re.IGNORECASE),
)
# token=..., in an address, a connection string, a list of settings.
_ASSIGNED = re.compile(r"(?<![A-Za-z0-9_-])([A-Za-z_][A-Za-z0-9_-]{0,200})=(['\"]?)([^\s&;,'\"]+)")

# A shorter value is as likely a common word, which then would be gone from every line.
_SHORTEST = 6


def is_secret(name: str) -> bool:
    """Whether what goes under this name (of a variable, of a flag) is not to be shown."""
    return bool(_NAME.search(name)) and not _PLACE.search(name)


@dataclass(frozen=True)
class Redactor:
    """Hides the secrets of one environment."""

    values: tuple[str, ...] = ()

    def text(self, text: str) -> str:
        for value in self.values:
            text = text.replace(value, HIDDEN)
        for form in _FORMS:
            text = form.sub(HIDDEN, text)
        return _ASSIGNED.sub(_unless_harmless, text)

    def value(self, name: str, value: str) -> str:
        """`value`, which goes under `name`."""
        return HIDDEN if value and is_secret(name) else self.text(value)

    def tokens(self, tokens: Iterable[str]) -> list[str]:
        """A command line; what follows a flag with a secret's name is hidden."""
        shown: list[str] = []
        hide = False
        for token in tokens:
            if token.startswith("-"):
                name, equals, joined = token.partition("=")
                hide = is_secret(name.lstrip("-")) and not equals
                shown.append(f"{name}={self.value(name.lstrip('-'), joined)}" if equals else self.text(token))
            else:
                shown.append(HIDDEN if hide else self.text(token))
        return shown

    def anything(self, value: object) -> object:
        """Every text in `value`, as JSON holds it."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {key: self.anything(item) for key, item in value.items()}
            case list() | tuple():
                return [self.anything(item) for item in value]
            case _:
                return value


def _unless_harmless(found: re.Match[str]) -> str:
    name, quote, _ = found.groups()
    return f"{name}={quote}{HIDDEN}" if is_secret(name) else found[0]


def of(*environments: Mapping[str, str]) -> Redactor:
    """A Redactor that knows the values of all secrets in these environments."""
    found: set[str] = set()
    for environment in environments:
        for name, value in environment.items():
            if is_secret(name) and len(value) >= _SHORTEST:
                # Also as a message quotes it, and as a shell is told it.
                found |= {value, repr(value)[1:-1], shlex.quote(value)}
    return Redactor(values=tuple(sorted(found, key=lambda v: (-len(v), v))))
