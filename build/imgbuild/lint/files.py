"""Rules for Dockerfiles and bake files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imgbuild.errors import ConfigError
from imgbuild.lint.dockerfile import directives, instruction, instructions
from imgbuild.lint.programs import COMMIT
from imgbuild.lint.scripts import ScriptRules
from imgbuild.lint.shell import Command

if TYPE_CHECKING:
    from imgbuild.lint.dockerfile import Instruction

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|PRIVATE_?KEY|INDEX_URL|(DEFAULT|EXTRA)_INDEX|PROXY",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"\b(?:ftp|git|https?|ssh)://[^/\s:@'\"]+:[^/\s@'\"]+@")
_GIT_URL = re.compile(
    r"^(?:git@|git://|ssh://)|\.git(?:$|[#?])|^(?:https?://)?git(?:hub|lab)\.com/[^/]+/[^/]+/?(?:$|[#?])"
)


class _Scope:
    """What a line of a Dockerfile may refer to."""

    def __init__(self, contexts: frozenset[str] | None) -> None:
        self.contexts = contexts
        self.stages: set[str] = set()
        self.defaults: dict[str, str] = {}


class FileRules(ScriptRules):
    def credentials(self, text: str) -> None:
        for match in _CREDENTIALS.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            self.report(line, "secret-in-image", "an address holds a name and a password")

    def dockerfile(self, text: str, contexts: frozenset[str] | None) -> None:
        frontend = directives(text).get("syntax")
        if frontend and not _DIGEST.search(frontend):
            self.report(1, "moving-source", f"the frontend {frontend} has no digest")
        scope = _Scope(contexts)
        for item in instructions(text):
            if item.name == "ONBUILD":
                name, _, rest = item.text.strip().partition(" ")
                self.instruction(instruction(name.upper(), rest, item.text_line), scope)
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
                if not any(COMMIT.search(x) for x in (source, *checksums)):
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

    def bake(self, text: str) -> None:
        def line_of(value: str) -> int:
            return text.count("\n", 0, max(text.find(json.dumps(value)), 0)) + 1

        for target in bake_targets(text):
            for source in (target.get("context", "."), *target.get("contexts", {}).values()):
                self.context(source, line_of(source))
            for name in filter(_SECRET_NAME.search, target.get("args", {})):
                message = f"the argument {name} stays in the image's history"
                self.report(line_of(name), "secret-in-image", message)
            if inline := target.get("dockerfile-inline"):
                inner = FileRules()
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


def bake_targets(text: str, path: str = "") -> list[dict[str, Any]]:
    try:
        return [dict(t) for t in json.loads(text).get("target", {}).values()]
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path}: not a bake file: {e}") from None
