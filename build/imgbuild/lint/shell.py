"""Shell, as much of it as says which programs are called."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from imgbuild.lint.heredoc import MARK, Heredoc, end_of_heredoc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Command(NamedTuple):
    words: tuple[str, ...]
    """Without quotes and redirections; what is put in at run time stays as it is written: `$HOME`, `$()`."""
    line: int
    before: str
    """The operator in front of it: `||`, `&&`, `|`, `;`, a newline, or nothing."""


_BLANK = re.compile(r"(?:[ \t\r]|\\\n)+|#[^\n]*")  # or a comment: it is asked for where a word may begin
_PLAIN = re.compile(r"[^\s;&|()<>'\"\\`$]+")
_REDIRECT = re.compile(r"\d*(?:&>>?|<<<|[<>]{1,2}[&|]?-?)")
_OPERATOR = re.compile(r"\n|\|\||&&|;;|\|&|[;&|()]")


class _Unfinished:
    """The command that is being read."""

    def __init__(self, at: int) -> None:
        self.at, self.before = at, ""
        self.words: list[str] = []
        self.heredocs: list[tuple[re.Match[str], list[str]]] = []
        self.target = False  # the next word is a redirection's


class Script:
    """Reads a script leniently: what it does not know ends a command, and is no error."""

    def __init__(self, text: str, line: int) -> None:
        self.text, self.at = text, 0
        self.line = line
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.commands: list[Command] = []
        self.heredocs: list[Heredoc] = []
        self._read("")
        self.commands.sort(key=lambda c: c.line)  # stable: of one line, in the order of their ends

    def _line(self, at: int) -> int:
        return self.line + bisect_right(self.newlines, at - 1)

    def _read(self, closing: str) -> None:
        now, depth = _Unfinished(self.at), 0
        while self.at < len(self.text):
            if blank := _BLANK.match(self.text, self.at):
                self.at = blank.end()
            elif mark := MARK.match(self.text, self.at):
                now.heredocs.append((mark, now.words))
                self.at = mark.end()
            elif redirect := _REDIRECT.match(self.text, self.at):
                self.at, now.target = redirect.end(), True
            elif operator := _OPERATOR.match(self.text, self.at):
                self.at = operator.end()
                self._end(now, operator[0])
                depth += (operator[0] == "(") - (operator[0] == ")")
                if closing and depth < 0:
                    return
            else:
                self._add_word(now)
        self._end(now, "")

    def _add_word(self, now: _Unfinished) -> None:
        begin = self.at
        word = self._word()
        if not now.target:
            now.at = now.at if now.words else begin
            now.words.append(word)
        now.target = False

    def _end(self, now: _Unfinished, operator: str) -> None:
        if now.words:
            self.commands.append(Command(tuple(now.words), self._line(now.at), now.before))
        if now.words or now.before not in ("||", "&&", "|"):  # a newline after these only breaks the line
            now.before = operator
        now.words, now.target = [], False
        if operator == "\n":
            self._heredocs(now.heredocs)
            now.heredocs = []

    def _heredocs(self, waiting: Iterable[tuple[re.Match[str], list[str]]]) -> None:
        for mark, words in waiting:
            lines = self.text[self.at :].split("\n")
            end = end_of_heredoc(lines, 0, mark)
            body = "\n".join(lines[:end])
            self.heredocs.append(Heredoc(command=" ".join(words), text=body, line=self._line(self.at)))
            self.at = min(len(self.text), self.at + sum(len(line) + 1 for line in lines[: end + 1]))

    def _word(self) -> str:
        pieces = []
        while self.at < len(self.text):
            here = self.text[self.at]
            if plain := _PLAIN.match(self.text, self.at):
                self.at = plain.end()
                pieces.append(plain[0])
            elif here == "'":
                end = self.text.find("'", self.at + 1)
                end = len(self.text) if end < 0 else end
                pieces.append(self.text[self.at + 1 : end])
                self.at = end + 1
            elif here == '"':
                pieces.append(self._double_quoted())
            elif here in "\\`$":
                pieces.append(self._special())
            else:
                break
        return "".join(pieces)

    def _double_quoted(self) -> str:
        self.at += 1
        pieces = []
        while self.at < len(self.text) and (here := self.text[self.at]) != '"':
            if here in "\\`$":
                pieces.append(self._special())
            else:
                pieces.append(here)
                self.at += 1
        self.at += 1
        return "".join(pieces)

    def _special(self) -> str:
        """An escaped character, or what the shell puts in; commands inside are read like all others."""
        here, self.at = self.text[self.at], self.at + 1
        following = self.text[self.at : self.at + 1]
        if here == "\\":
            self.at += 1
            return "" if following == "\n" else following
        if here == "`":
            end = self.text.find("`", self.at)
            end = len(self.text) if end < 0 else end
            inner = Script(self.text[self.at : end], self._line(self.at))
            self.commands += inner.commands
            self.at = end + 1
            return "$()"
        if following == "(":
            self.at += 1
            self._read(")")
            return "$()"
        if following == "{":
            end = self.text.find("}", self.at)
            end = len(self.text) if end < 0 else end + 1
            name, self.at = self.text[self.at : end], end
            return f"${name}"
        return "$"


KEYWORDS = frozenset(("!", "{", "}", "do", "elif", "else", "if", "then", "time", "until", "while"))
_WRAPPERS = frozenset(("command", "env", "exec", "nice", "nohup", "sudo", "xargs"))
_ASSIGNMENT = re.compile(r"\w+=")


def called_program(words: Sequence[str]) -> list[str]:
    """The program, without its folder, and its arguments; behind keywords, assignments, sudo and the like."""
    rest = list(words)
    while rest and (rest[0] in KEYWORDS or _ASSIGNMENT.match(rest[0])):
        rest.pop(0)
    while rest and rest[0] in _WRAPPERS:
        rest.pop(0)
        while rest and (rest[0].startswith("-") or rest[0].isdigit() or _ASSIGNMENT.match(rest[0])):
            rest.pop(0)
    if not rest:
        return []
    program = rest[0].rpartition("/")[2]
    if re.fullmatch(r"python[\d.]*|\$\{?\w*PYTHON\w*\}?", program):
        for i, word in enumerate(rest[1:], 1):
            if word == "-m":
                program, *rest = rest[i + 1 :] or [program]
                return ["pyproject-build" if program == "build" else program, *rest]
            if not word.startswith("-"):
                break
    return [re.sub(r"^pip[\d.]+$", "pip", program), *rest[1:]]
