"""What a rendered file does and must not, by rule, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal[
    "moving-source", "secret-in-image", "swallowed-failure", "unhashed-download", "unverified-source"
]

REMEDIES: dict[Rule, str] = {
    "moving-source": "name a commit by its 40 hex digits, an image by @sha256:…",
    "secret-in-image": "pass it as a secret file: RUN --mount=type=secret,id=…",
    "swallowed-failure": "let it fail, or ask first for the one case that may go wrong: if …; then …; fi",
    "unhashed-download": "pin it: --require-hashes, ADD --checksum=sha256:…, or `sha256sum --check` after it",
    "unverified-source": "leave the check on, and trust one more certificate or key instead",
}


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    path: str
    line: int
    rule: Rule
    message: str

    @property
    def remedy(self) -> str:
        return REMEDIES[self.rule]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}; {self.remedy}"
