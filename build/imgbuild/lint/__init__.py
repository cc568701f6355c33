"""What a rendered file must never do: swallow a failure, follow what moves, trust what no hash pins, keep a secret."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from imgbuild.errors import ConfigError
from imgbuild.lint.files import FileRules, bake_targets
from imgbuild.lint.scripts import language

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.lint.finding import Finding


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
    return language(name, text)


@functools.lru_cache(maxsize=1024)  # most scripts are the same for every target
def _of_file(kind: _Kind | None, text: str, contexts: frozenset[str] | None) -> tuple[Finding, ...]:
    """Findings without their path; `contexts` are the named contexts, None where they are not known."""
    if kind is None:
        return ()
    check = FileRules()
    check.credentials(text)
    if kind == "dockerfile":
        check.dockerfile(text, contexts)
    elif kind == "bake":
        check.bake(text)
    else:
        check.script(kind, text, 1)
    return tuple(dict.fromkeys(check.found))


def _named_contexts(files: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """What the bake files give each Dockerfile beside its own stages."""
    found: dict[str, frozenset[str]] = {}
    for path, text in files.items():
        if _kind(path, text) == "bake":
            for target in bake_targets(text, path):
                dockerfile = f"{target.get('context', '.')}/{target.get('dockerfile', 'Dockerfile')}"
                found[dockerfile] = found.get(dockerfile, frozenset()) | {*target.get("contexts", {})}
    return found
