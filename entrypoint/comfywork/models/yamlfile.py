"""A YAML file as plain data that remembers the line of every key and item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

Loc = tuple[str | int, ...]

_LARGEST = 1_000_000
"""Bytes: a list of models has thousands."""


@dataclass(frozen=True)
class YamlFile:
    name: str
    data: Any
    lines: dict[Loc, int] = field(repr=False)

    def line(self, loc: Loc) -> int:
        """The line of a place, or of the nearest place above it that is in the file."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, what: str) -> str:
        where = dotted(loc)
        return f"{self.name}:{self.line(loc)}: {where}: {what}" if where else f"{self.name}: {what}"


class YamlError(ValueError):
    """Not YAML, or YAML that is not used here; `problems` are whole lines for people."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def dotted(loc: Loc) -> str:
    """('models', 0, 'files') → 'models[0].files'."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def loader() -> YAML:
    """One that keeps comments and quotes, so that a file can be written back with only the changed lines changed."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 10_000  # no line is folded
    return yaml


def parse(raw: bytes, name: str) -> YamlFile:
    """YamlError with every mistake that can be seen without knowing what the file is for."""
    if len(raw) > _LARGEST:
        raise YamlError(f"{name}: is larger than {_LARGEST:,} bytes, and no list of models is")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise YamlError(f"{name}:{line}: is not UTF-8 text") from None
    try:
        node = loader().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(str(part) for part in (error.context, error.problem) if part).splitlines()
        raise YamlError(
            f"{name}:{mark.line + 1 if mark else 1}: is not YAML: {why[0] if why else ''}"
        ) from None
    except (YAMLError, ValueError) as error:
        raise YamlError(f"{name}: is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise YamlError(f"{name}: is nested too deeply") from None
    if node is None:
        raise YamlError(f"{name}: is empty")
    reader = _Reader(name)
    data = reader.convert(node, (), 1)
    if reader.problems:
        raise YamlError(*reader.problems)
    return YamlFile(name, data, reader.lines)


class _Reader:
    """Anchors are refused: nobody can say on which line their content stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Loc, int] = {}
        self.problems: list[str] = []
        self._seen: set[int] = set()

    def convert(self, node: Any, loc: Loc, line: int) -> Any:
        self.lines.setdefault(loc, line)
        if isinstance(node, CommentedMap | CommentedSeq):
            if id(node) in self._seen:
                where = dotted(loc)
                self.problems.append(
                    f"{self.name}:{line}: {where}: anchors and aliases are not used here: write the value out"
                )
                return None
            self._seen.add(id(node))
        match node:
            case CommentedMap():
                return {
                    str(k): self.convert(v, (*loc, str(k)), _line(node, k, line)) for k, v in node.items()
                }
            case CommentedSeq():
                return [self.convert(v, (*loc, i), _line(node, i, line)) for i, v in enumerate(node)]
            case _:
                return _plain(node)


def _line(node: CommentedMap | CommentedSeq, key: Any, otherwise: int) -> int:
    try:
        found = node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key)
    except (KeyError, TypeError, AttributeError):
        return otherwise
    return int(found[0]) + 1


def _plain(node: Any) -> Any:
    match node:
        case ScalarBoolean():  # derived from int, and so is bool
            return bool(node)
        case bool() | None:
            return node
        case int():
            return int(node)
        case float():
            return float(node)
        case _:
            return str(node)
