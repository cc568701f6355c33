"""What a rendered file must never do: swallow a failure, follow what moves, trust what no hash pins, keep a secret.

The Dockerfile's grammar is written out here. Of the parsers on the index,
dockerfile-parse 2.0.1 (2023) takes the lines of a heredoc for instructions, a
`FROM` in one included; dockerfile 3.4.0 is BuildKit's own, in Go, with wheels
for x86_64 alone, and this tool also runs on a gb10, which is arm64.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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


def lint(files: Mapping[str, str]) -> tuple[Finding, ...]:
    """Findings in rendered files ({path: text}), in the order of paths and lines.

    Looked at are Dockerfiles, bake files (JSON), and shell and Python scripts.
    """
    contexts = _named_contexts(files)
    found = []
    for path, text in files.items():
        try:
            inside = _of_file(_kind(path, text), text, contexts.get(path))
        except SyntaxError as e:
            raise ConfigError(f"{path}:{e.lineno}: not Python: {e.msg}") from None
        found += [replace(finding, path=path) for finding in inside]
    return tuple(sorted(found))


def refuse_findings(files: Mapping[str, str]) -> None:
    """ConfigError with every finding when there is one."""
    if found := lint(files):
        raise ConfigError(
            "\n".join(["what is rendered is not fit to be built:", *map(str, found)]),
            hint="mend templates/ or images/, from which they are rendered",
        )


_Kind = Literal["dockerfile", "bake", "shell", "python"]


def _kind(path: str, text: str) -> _Kind | None:
    name = path.rpartition("/")[2].lower()
    if re.search(r"(^|\.)(dockerfile|containerfile)(\.|$)", name):
        return "dockerfile"
    if name.endswith(".json"):
        return "bake" if "bake" in name else None
    return _script_kind(name, text)


def _script_kind(name: str, text: str) -> _Kind | None:
    first = text.partition("\n")[0]
    if name.endswith(".py") or re.match(r"#!.*\bpython", first):
        return "python"
    return "shell" if name.endswith(".sh") or re.match(r"#!.*sh\b", first) else None


@functools.lru_cache(maxsize=1024)  # most scripts are the same for every target
def _of_file(kind: _Kind | None, text: str, contexts: frozenset[str] | None) -> tuple[Finding, ...]:
    """Findings without their path; `contexts` are the named contexts, None where they are not known."""
    if kind is None:
        return ()
    check = _Check()
    check.credentials(text)
    if kind == "dockerfile":
        check.dockerfile(text, contexts)
    elif kind == "bake":
        check.bake(text)
    else:
        check.script(kind, text, 1)
    return tuple(dict.fromkeys(check.found))


@functools.lru_cache(maxsize=1024)
def _of_shell(text: str) -> tuple[Finding, ...]:
    check = _Check()
    read = _Shell(text, 1)
    check.commands(read.commands)
    for heredoc in read.heredocs:
        check.heredoc(heredoc)
    return tuple(check.found)


def _named_contexts(files: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """What the bake files give each Dockerfile beside its own stages."""
    found: dict[str, frozenset[str]] = {}
    for path, text in files.items():
        if _kind(path, text) == "bake":
            for target in _bake_targets(text, path):
                dockerfile = f"{target.get('context', '.')}/{target.get('dockerfile', 'Dockerfile')}"
                found[dockerfile] = found.get(dockerfile, frozenset()) | {*target.get("contexts", {})}
    return found


def _bake_targets(text: str, path: str = "") -> list[dict[str, Any]]:
    try:
        return [dict(t) for t in json.loads(text).get("target", {}).values()]
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path}: not a bake file: {e}") from None


# --- Dockerfiles: https://docs.docker.com/reference/dockerfile/ ----------------------------------


@dataclass(frozen=True, kw_only=True)
class Heredoc:
    command: str
    """What is written beside `<<WORD`: the program that gets it, or the file that it becomes."""
    text: str
    line: int


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
        return self.exec_form() or [w for c in _Shell(self.text, 1).commands for w in c.words]

    def flag(self, name: str) -> list[str]:
        return [value for f in self.flags for key, _, value in [f.partition("=")] if key == f"--{name}"]


_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
_HEREDOC = re.compile(r"<<(-?)\s*(['\"]?)([A-Za-z_][\w.-]*)\2")
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
                for mark in _HEREDOC.finditer(whole):
                    end = _end_of_heredoc(lines, at, mark)
                    bodies.append(("\n".join(lines[at:end]), at + 1))
                    at = end + 1
            yield _instruction(name[1].upper(), whole[name.end() :], start + 1, bodies)


def _end_of_heredoc(lines: Sequence[str], start: int, mark: re.Match[str]) -> int:
    """The index of the line that closes it, or of the last and one when none does."""
    for at in range(start, len(lines)):
        if (lines[at].lstrip("\t") if mark[1] else lines[at]) == mark[3]:
            return at
    return len(lines)


def _instruction(name: str, rest: str, line: int, bodies: Iterable[tuple[str, int]] = ()) -> Instruction:
    """`rest` begins on `line`; `bodies` are the texts of its heredocs and their first lines."""
    flags, at = [], 0
    while flag := _FLAG.match(rest, at):
        flags.append(flag[1])
        at = flag.end()
    text = _HEREDOC.sub("", rest[at:]) if bodies else rest[at:]
    return Instruction(
        name=name,
        line=line,
        flags=tuple(flags),
        text=text,
        text_line=line + rest.count("\n", 0, at),
        heredocs=tuple(Heredoc(command=text, text=body, line=first) for body, first in bodies),
    )


# --- shell: as much of it as says which programs are called --------------------------------------


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


class _Shell:
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
            elif mark := _HEREDOC.match(self.text, self.at):
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
            end = _end_of_heredoc(lines, 0, mark)
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
            inner = _Shell(self.text[self.at : end], self._line(self.at))
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


_KEYWORDS = frozenset(("!", "{", "}", "do", "elif", "else", "if", "then", "time", "until", "while"))
_WRAPPERS = frozenset(("command", "env", "exec", "nice", "nohup", "sudo", "xargs"))
_ASSIGNMENT = re.compile(r"\w+=")


def _call(words: Sequence[str]) -> list[str]:
    """The program, without its folder, and its arguments; behind keywords, assignments, sudo and the like."""
    rest = list(words)
    while rest and (rest[0] in _KEYWORDS or _ASSIGNMENT.match(rest[0])):
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


# --- the rules -----------------------------------------------------------------------------------

_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|PRIVATE_?KEY|INDEX_URL|(DEFAULT|EXTRA)_INDEX|PROXY",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"\b(?:ftp|git|https?|ssh)://[^/\s:@'\"]+:[^/\s@'\"]+@")
_UNVERIFIED = re.compile(
    r"apt-key\b|--allow-unauthenticated|--allow-insecure-repositories|AllowUnauthenticated|AllowInsecure"
    r"|\btrusted\s*[=:]\s*yes|--no-check-certificate|--insecure\b|--trusted-host|--allow-insecure-host"
    r"|http\.sslVerify[= ]false|GIT_SSL_NO_VERIFY|--no-gpg-check|--nogpgcheck",
    re.IGNORECASE,
)
_GIT_URL = re.compile(
    r"^(?:git@|git://|ssh://)|\.git(?:$|[#?])|^(?:https?://)?git(?:hub|lab)\.com/[^/]+/[^/]+/?(?:$|[#?])"
)
_NOTHING = (["true"], [":"], ["exit", "0"], ["return", "0"])
_CHECKSUMS = frozenset(("b2sum", "sha256sum", "sha384sum", "sha512sum", "shasum"))
_PYTHON_DOWNLOADS = ("urlopen", "urlretrieve", "requests.get", "httpx.get")
# Programs that fetch what only an index vouches for, and the verbs with which they do.
_INSTALLERS = {
    "cargo": {"install"},
    "conda": {"create", "install"},
    "easy_install": None,
    "gem": {"install"},
    "go": {"get", "install"},
    "mamba": {"create", "install"},
    "npm": {"i", "install"},
    "npx": None,
    "pipx": None,
    "pyproject-build": None,
    "uvx": None,
}
# Of pip and uv: options whose value is another word, so that it is not taken for a requirement.
_PIP_VALUE = re.compile(
    r"--(abi|cache-dir|cert|config-(file|settings)|constraint|dest|(extra-)?index-url|find-links|implementation"
    r"|keyring-provider|link-mode|(no|only)-binary|platform|prefix|python(-platform|-version)?|report|retries|root"
    r"|src|target|timeout|wheel-dir)|-[Ccdfiptw]"
)


class _Scope:
    """What a line of a Dockerfile may refer to."""

    def __init__(self, contexts: frozenset[str] | None) -> None:
        self.contexts = contexts
        self.stages: set[str] = set()
        self.defaults: dict[str, str] = {}


class _Check:
    """Collects the findings of one file."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def report(self, line: int, rule: Rule, message: str) -> None:
        self.found.append(Finding(path="", line=line, rule=rule, message=message))

    def credentials(self, text: str) -> None:
        for match in _CREDENTIALS.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            self.report(line, "secret-in-image", "an address holds a name and a password")

    def script(self, kind: _Kind, text: str, line: int) -> None:
        if kind == "python":
            tree = ast.increment_lineno(ast.parse(text), line - 1)
            self.commands_of_python(tree)
            self.python(tree)
        else:
            self.shell(text, line)

    # -- Dockerfile

    def dockerfile(self, text: str, contexts: frozenset[str] | None) -> None:
        frontend = directives(text).get("syntax")
        if frontend and not _DIGEST.search(frontend):
            self.report(1, "moving-source", f"the frontend {frontend} has no digest")
        scope = _Scope(contexts)
        for item in instructions(text):
            if item.name == "ONBUILD":
                name, _, rest = item.text.strip().partition(" ")
                self.instruction(_instruction(name.upper(), rest, item.text_line), scope)
            else:
                self.instruction(item, scope)

    def instruction(self, item: Instruction, scope: _Scope) -> None:
        match item.name:
            case "FROM":
                self.base(item, scope)
            case "ARG" | "ENV":
                self.variables(item)
                if not scope.stages:  # only these reach a FROM
                    pairs = (w.partition("=")[::2] for w in item.words())
                    scope.defaults.update(pairs)
            case "ADD" | "COPY" | "RUN":
                if item.name == "ADD":
                    self.added(item)
                elif item.name == "RUN":
                    self.run(item)
                self.images_read(item, scope)
                for heredoc in item.heredocs:
                    self.heredoc(heredoc)

    def base(self, item: Instruction, scope: _Scope) -> None:
        words = item.words()
        image = re.sub(
            r"\$\{?(\w+)(?::?-([^}]*))?\}?",
            lambda m: scope.defaults.get(m[1]) or m[2] or m[0],
            words[0] if words else "",
        )
        known = scope.stages | {"scratch"} | (scope.contexts or frozenset())
        # What only the caller's ARG says is the caller's to pin.
        if image.lower() not in known and "$" not in image and not _DIGEST.search(image):
            self.report(item.line, "moving-source", f"the base image {image} has no digest")
        scope.stages.add(words[2].lower() if len(words) > 2 else str(len(scope.stages)))  # noqa: PLR2004

    def images_read(self, item: Instruction, scope: _Scope) -> None:
        """`--from` names a stage, a named context, or else an image that is pulled."""
        mounts = [dict(p.partition("=")[::2] for p in m.split(",")) for m in item.flag("mount")]
        for name in (*item.flag("from"), *(m["from"] for m in mounts if "from" in m)):
            if name.lower() in scope.stages or name.isdigit() or "$" in name or _DIGEST.search(name):
                continue
            if any(c in name for c in ":/") or (scope.contexts is not None and name not in scope.contexts):
                message = f"{name} is no stage and no context, and has no digest"
                self.report(item.line, "moving-source", message)

    def variables(self, item: Instruction) -> None:
        words = item.words()
        if item.name == "ENV" and words and "=" not in words[0]:
            words = words[:1]  # the old form: ENV NAME the rest is its value
        for name in (w.partition("=")[0] for w in words):
            if _SECRET_NAME.search(name):
                self.report(item.line, "secret-in-image", f"{item.name} {name} stays in the image's history")

    def added(self, item: Instruction) -> None:
        checksums = item.flag("checksum")
        for source in item.words()[:-1]:
            if _GIT_URL.search(source):
                if not any(_COMMIT.search(x) for x in (source, *checksums)):
                    self.report(item.line, "moving-source", f"ADD {source} names no commit")
            elif re.match(r"(https?|ftp)://", source) and not any(
                re.fullmatch(r"sha(256|384|512):[0-9a-f]{64,128}", x) for x in checksums
            ):
                self.report(item.line, "unhashed-download", f"ADD {source} has no --checksum")

    def run(self, item: Instruction) -> None:
        if words := item.exec_form():
            self.commands([Command(tuple(words), item.text_line, "")])
        else:
            self.shell(item.text, item.text_line)

    def heredoc(self, heredoc: Heredoc) -> None:
        """What is fed to a program, or becomes a file: a script unless it is said to be Python."""
        words = heredoc.command.split()
        python = any(re.match(r"python|.*\.py$", w.rpartition("/")[2]) for w in words)
        kind: _Kind = "python" if python or _script_kind("", heredoc.text) == "python" else "shell"
        self.script(kind, heredoc.text, heredoc.line)

    # -- shell

    def shell(self, text: str, line: int) -> None:
        self.found += [replace(f, line=f.line + line - 1) for f in _of_shell(text)]

    def commands(self, commands: Sequence[Command]) -> None:
        """The commands of one script, in their order: what a later one checks, an earlier one may fetch."""
        calls = [_call(c.words) for c in commands]
        for i, (command, call) in enumerate(zip(commands, calls, strict=True)):
            if unverified := _UNVERIFIED.search(" ".join(command.words)):
                self.report(command.line, "unverified-source", f"{unverified[0]} turns a check off")
            if call:
                self.swallowed(command, call, commands[i - 1] if i else None)
                piped = i + 1 < len(commands) and commands[i + 1].before.startswith("|") and i + 1
                self.called(call, command.line, calls[i + 1 : piped + 1 if piped else None])

    def called(self, call: list[str], line: int, later: list[list[str]]) -> None:
        """`later` are the calls that see what this one leaves: of a pipe, the next alone."""
        program, *arguments = call
        match program:
            case "bash" | "dash" | "eval" | "sh":
                self.inline(program, arguments, line)
            case "git":
                self.git(arguments, line, [c for c in later if c[:1] == ["git"]])
            case "aria2c" | "curl" | "wget":
                self.fetched(call, line, later)
            case "pip":
                self.pip("pip", arguments, line)
            case "uv":
                self.uv(arguments, line)
            case _ if program in _INSTALLERS:
                verbs = _INSTALLERS[program]
                isolated = program != "pyproject-build" or not {"--no-isolation", "-n"} & {*arguments}
                if isolated and (verbs is None or verbs & {*arguments[:1]}):
                    message = f"{' '.join(call[:2])}: nothing pins what it fetches"
                    self.report(line, "unhashed-download", message)

    def swallowed(self, command: Command, call: list[str], previous: Command | None) -> None:
        if call in _NOTHING and command.before == "||":
            self.report(command.line, "swallowed-failure", f"|| {' '.join(call)} hides a failure")
        # `then :` and `while :` are idioms; a statement of its own only resets the status.
        opens = previous is None or previous.words[-1] in _KEYWORDS
        if list(command.words) in _NOTHING[:2] and command.before in (";", "\n", "&") and not opens:
            self.report(
                command.line, "swallowed-failure", f"{call[0]} as the last word hides a failure before it"
            )
        if call[0] == "set":
            off = {option for flag, option in pairwise(call) if flag == "+o"}
            if any(re.fullmatch(r"\+[a-z]*e[a-z]*", a) for a in call[1:]) or off & {"errexit", "pipefail"}:
                self.report(
                    command.line, "swallowed-failure", f"{' '.join(call)}: what fails afterwards is not seen"
                )

    def inline(self, program: str, arguments: list[str], line: int) -> None:
        """`sh -c '…'` and `eval …`."""
        if program == "eval":
            self.shell(" ".join(arguments), line)
        for option, script in pairwise(arguments):
            if program != "eval" and re.fullmatch(r"-[a-z]*c", option):
                self.shell(script, line)

    def git(self, arguments: list[str], line: int, later: list[list[str]]) -> None:
        verb = next((a for a in arguments if a in ("clone", "fetch", "pull", "submodule")), None)
        pinned = any(_COMMIT.search(w) for words in (arguments, *later) for w in words)
        if verb == "pull" or (verb == "submodule" and "--remote" in arguments):
            self.report(line, "moving-source", f"git {verb} takes what a branch points to today")
        elif verb in ("clone", "fetch") and not pinned:
            self.report(line, "moving-source", f"git {verb} of no commit")

    def fetched(self, call: list[str], line: int, later: list[list[str]]) -> None:
        checked = any(c and c[0] in _CHECKSUMS and {"-c", "--check"} & {*c} for c in later)
        if any(not w.startswith("-") for w in call[1:]) and not checked:
            self.report(line, "unhashed-download", f"{call[0]}, and no checksum is looked at")
        if call[0] == "curl" and any(re.fullmatch(r"-[a-zA-Z]*k[a-zA-Z]*", w) for w in call[1:]):
            self.report(line, "unverified-source", "curl -k turns a check off")

    def pip(self, program: str, arguments: list[str], line: int) -> None:
        pairs = list(pairwise(["", *arguments]))
        values = [w for before, w in pairs if _PIP_VALUE.fullmatch(before)]
        plain = [w for before, w in pairs if not w.startswith("-") and not _PIP_VALUE.fullmatch(before)]
        verb, wanted = plain[0] if plain else "", plain[1:]
        if verb not in ("download", "install", "sync", "wheel"):
            return
        options = {w.partition("=")[0] for w in arguments if w.startswith("-")}
        for word in wanted:
            if "git+" in word and not re.search(r"@[0-9a-f]{40}(?:[#\s]|$)", word):
                self.report(line, "moving-source", f"{program} {verb} {word} names no commit")
        offline = options & {"--no-index", "--offline"} and not any("://" in w for w in (*wanted, *values))
        if "--require-hashes" in options or offline:
            return
        # A path or a commit is itself; what it depends on, and what builds it, is not.
        itself = re.compile(r"[./~$]|(?!.*://).*\.(whl|zip|tar\.gz)$|(.*@ ?)?git\+")
        whole = (
            wanted
            and not options & {"-r", "--requirement", "--requirements"}
            and all(itself.match(w) for w in wanted)
        )
        built = "--no-build-isolation" in options or all(w.endswith(".whl") for w in wanted)
        if not (whole and built and "--no-deps" in options):
            self.report(line, "unhashed-download", f"{program} {verb} without --require-hashes")

    def uv(self, arguments: list[str], line: int) -> None:
        verb = next((w for w in arguments if w in ("add", "pip", "run", "sync", "tool")), "")
        if verb == "pip":
            self.pip("uv pip", arguments[arguments.index("pip") + 1 :], line)
        elif verb in ("sync", "run") and not {"--frozen", "--locked", "--offline"} & {*arguments}:
            self.report(line, "unhashed-download", f"uv {verb} without --locked")
        elif verb in ("add", "tool"):
            self.report(line, "unhashed-download", f"uv {verb}: nothing pins what it fetches")

    # -- bake files

    def bake(self, text: str) -> None:
        def line_of(value: str) -> int:
            return text.count("\n", 0, max(text.find(json.dumps(value)), 0)) + 1

        for target in _bake_targets(text):
            for source in (target.get("context", "."), *target.get("contexts", {}).values()):
                self.context(source, line_of(source))
            for name in filter(_SECRET_NAME.search, target.get("args", {})):
                message = f"the argument {name} stays in the image's history"
                self.report(line_of(name), "secret-in-image", message)
            if inline := target.get("dockerfile-inline"):
                inner = _Check()
                inner.dockerfile(inline, frozenset(target.get("contexts", {})))
                self.found += [replace(f, line=line_of(inline)) for f in inner.found]

    def context(self, source: str, line: int) -> None:
        if _GIT_URL.search(source):
            if not re.search(r"(#|[?&](commit|checksum)=)[0-9a-f]{40}(?![0-9a-f])", source):
                self.report(line, "moving-source", f"the context {source} names no commit")
        elif source.startswith("docker-image://"):
            if not _DIGEST.search(source):
                self.report(line, "moving-source", f"the context {source} has no digest")
        elif re.match(r"https?://", source):
            self.report(line, "unhashed-download", f"nothing pins the context {source}")

    # -- Python

    def commands_of_python(self, tree: ast.AST) -> None:
        """Commands are lists that are written out; `command += […]` goes on with the one of that name."""
        for scope in (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef)):
            named: dict[str, Command] = {}
            for node in _parts(scope):
                words = _words(getattr(node, "value", None), named)
                match node:
                    case (
                        ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name))
                    ) if words:
                        self.commands([named.pop(name)] if name in named else [])
                        named[name] = Command(words, node.lineno, "")
                    case ast.AugAssign(target=ast.Name(id=name)) if words and name in named:
                        named[name] = named[name]._replace(words=named[name].words + words)
                    case _:
                        for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
                            lists = (_words(a, named) for a in call.args if not isinstance(a, ast.Name))
                            self.commands([Command(words, call.lineno, "") for words in lists if words])
            # The beginning of a longer list is no command yet.
            begun = {
                n.value.id
                for n in ast.walk(scope)
                if isinstance(n, ast.Starred) and isinstance(n.value, ast.Name)
            }
            for name, command in named.items():
                self.commands([command] if name not in begun else [])

    def python(self, tree: ast.AST) -> None:
        nodes = list(ast.walk(tree))
        hashes = any(_dotted(n) == "hashlib" for n in nodes if isinstance(n, ast.Name))
        for node in nodes:
            match node:
                case ast.Call(
                    func=function, args=[ast.Constant(value=str(script)), *_], keywords=keywords
                ) if _dotted(function) == "os.system" or any(k.arg == "shell" for k in keywords):
                    self.shell(script, node.lineno)
                case ast.Call(func=function) if _dotted(function).endswith(_PYTHON_DOWNLOADS) and not hashes:
                    self.report(
                        node.lineno, "unhashed-download", f"{_dotted(function)}, and hashlib is never asked"
                    )
                case ast.ExceptHandler(type=caught, body=[ast.Pass()]) if _catches_everything(caught):
                    self.report(node.lineno, "swallowed-failure", "this handler passes over every failure")
                case ast.Call(func=function, args=[caught]) if _dotted(function).endswith(
                    "suppress"
                ) and _catches_everything(caught):
                    self.report(node.lineno, "swallowed-failure", "suppress() of every failure")


def _parts(scope: ast.AST) -> Iterator[ast.AST]:
    """The simple statements of a function or a module in their order, and what is asked in `if` and `with`."""
    for node in ast.iter_child_nodes(scope):
        if hasattr(node, "body") and not isinstance(node, ast.FunctionDef):
            yield from _parts(node)
        elif not isinstance(node, ast.FunctionDef):
            yield node


def _catches_everything(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return caught is None or any(_dotted(n) in ("BaseException", "Exception") for n in names)


def _dotted(node: ast.expr | None) -> str:
    """`a.b` as it is written; of what is no name only the end."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _words(node: ast.expr | None, named: Mapping[str, Command]) -> tuple[str, ...]:
    """The words of a list that is written out, `$` for what only a run knows; none of anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _words(node.left, named) + _words(node.right, named)
    if isinstance(node, ast.Name) and node.id in named:
        return named[node.id].words
    if not isinstance(node, ast.List | ast.Tuple):
        return ()
    found: list[str] = []
    for element in node.elts:
        match element:
            case ast.Constant(value=str(text)):
                found.append(text)
            case ast.JoinedStr(values=values):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "$" for v in values))
            case ast.Starred(value=value):
                found += _words(value, named) or ("$",)
            case _:
                found.append("python" if _dotted(element) == "sys.executable" else "$")
    return tuple(found)
