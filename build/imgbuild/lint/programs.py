"""Rules for the programs that a script calls."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from imgbuild.lint.finding import Finding
from imgbuild.lint.shell import KEYWORDS, called_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.lint.finding import Rule
    from imgbuild.lint.shell import Command

COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
_UNVERIFIED = re.compile(
    r"apt-key\b|--allow-unauthenticated|--allow-insecure-repositories|AllowUnauthenticated|AllowInsecure"
    r"|\btrusted\s*[=:]\s*yes|--no-check-certificate|--insecure\b|--trusted-host|--allow-insecure-host"
    r"|http\.sslVerify[= ]false|GIT_SSL_NO_VERIFY|--no-gpg-check|--nogpgcheck",
    re.IGNORECASE,
)
_NOTHING = (["true"], [":"], ["exit", "0"], ["return", "0"])
_CHECKSUMS = frozenset(("b2sum", "sha256sum", "sha384sum", "sha512sum", "shasum"))
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


class ProgramRules:
    """Collects the findings of one file."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def report(self, line: int, rule: Rule, message: str) -> None:
        self.found.append(Finding(path="", line=line, rule=rule, message=message))

    def commands(self, commands: Sequence[Command]) -> None:
        """The commands of one script, in their order: what a later one checks, an earlier one may fetch."""
        calls = [called_program(c.words) for c in commands]
        for i, (command, call) in enumerate(zip(commands, calls, strict=True)):
            if unverified := _UNVERIFIED.search(" ".join(command.words)):
                self.report(command.line, "unverified-source", f"{unverified[0]} turns a check off")
            if call:
                self.swallowed(command, call, commands[i - 1] if i else None)
                piped = i + 1 < len(commands) and commands[i + 1].before.startswith("|") and i + 1
                self.called(call, command.line, calls[i + 1 : piped + 1 if piped else None])

    def shell(self, text: str, line: int) -> None:
        """What a script inside says."""
        raise NotImplementedError

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
        opens = previous is None or previous.words[-1] in KEYWORDS
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
        pinned = any(COMMIT.search(w) for words in (arguments, *later) for w in words)
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
