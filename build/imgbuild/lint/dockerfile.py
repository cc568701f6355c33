"""The grammar of Dockerfiles: https://docs.docker.com/reference/dockerfile/

It is written out here. Of the parsers on the index, dockerfile-parse 2.0.1 (2023) takes the lines of a heredoc for
instructions, a `FROM` in one included; dockerfile 3.4.0 is BuildKit's own, in Go, with wheels for x86_64 alone, and
this tool also runs on a gb10, which is arm64.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from imgbuild.lint.heredoc import MARK, Heredoc, end_of_heredoc
from imgbuild.lint.shell import Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, kw_only=True)
class Instruction:
    name: str
    line: int
    flags: tuple[str, ...]
    """`--mount=…`, each as it is written."""
    text: str
    """The rest: lines are joined by a backslash and a newline, comments between them are gone."""
    text_line: int
    heredocs: tuple[Heredoc, ...]

    def exec_form(self) -> list[str] | None:
        """The words of `RUN ["a", "b"]`; None of the other form."""
        try:
            words = json.loads(self.text.replace("\\\n", "\n"))
        except ValueError:
            return None
        return [str(w) for w in words] if isinstance(words, list) else None

    def words(self) -> list[str]:
        return self.exec_form() or [w for c in Script(self.text, 1).commands for w in c.words]

    def flag(self, name: str) -> list[str]:
        return [value for f in self.flags for key, _, value in [f.partition("=")] if key == f"--{name}"]


_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
_NAME = re.compile(r"\s*([A-Za-z]+)")
_FLAG = re.compile(r"(?:[ \t]|\\\n)*(--[\w-]+(?:=(?:\"[^\"]*\"|[^\s\\])*)?)")


def directives(text: str) -> dict[str, str]:
    """`# syntax=…` and `# escape=…`, which count on the first lines only."""
    matches = takewhile(bool, (_DIRECTIVE.match(line) for line in text.splitlines()))
    return {m[1].lower(): m[2] for m in matches if m}


def instructions(text: str) -> Iterator[Instruction]:
    """A Dockerfile as BuildKit reads it."""
    escape = re.escape(directives(text).get("escape", "\\"))
    goes_on = re.compile(rf"(?<!{escape}){escape}[ \t]*$")
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        start, parts = at, list[str]()
        while at < len(lines):
            line, at = lines[at], at + 1
            if not line.strip() or line.lstrip().startswith("#"):
                parts += [""] if parts else []  # left out, and counted as a line all the same
                if not parts:
                    break
                continue
            parts.append(goes_on.sub("", line))
            if not goes_on.search(line):
                break
        whole = "\\\n".join(parts)
        if name := _NAME.match(whole):
            bodies = []
            if name[1].upper() in ("ADD", "COPY", "RUN"):
                for mark in MARK.finditer(whole):
                    end = end_of_heredoc(lines, at, mark)
                    bodies.append(("\n".join(lines[at:end]), at + 1))
                    at = end + 1
            yield instruction(name[1].upper(), whole[name.end() :], start + 1, bodies)


def instruction(name: str, rest: str, line: int, bodies: Iterable[tuple[str, int]] = ()) -> Instruction:
    """`rest` begins on `line`; `bodies` are the texts of its heredocs and their first lines."""
    flags, at = [], 0
    while flag := _FLAG.match(rest, at):
        flags.append(flag[1])
        at = flag.end()
    text = MARK.sub("", rest[at:]) if bodies else rest[at:]
    return Instruction(
        name=name,
        line=line,
        flags=tuple(flags),
        text=text,
        text_line=line + rest.count("\n", 0, at),
        heredocs=tuple(Heredoc(command=text, text=body, line=first) for body, first in bodies),
    )
