"""A YAML file as plain data that remembers the line of every key and item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

Loc = tuple[str | int, ...]

_MAX_DEPTH = 20
_MAX_OPEN = 50  # composing recurses in C: deep enough, and the process dies
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser is ten times faster


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where (file, line from 1, key as a dotted path) and what."""

    file: str
    line: int
    key: str
    what: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.key}: {self.what}" if self.key else f"{where}{self.what}"


@dataclass(frozen=True)
class YamlFile:
    """`data` is None when the file could not be read; `problems` then says why."""

    name: str
    data: Any
    lines: dict[Loc, int] = field(repr=False)
    problems: tuple[Problem, ...]

    def line(self, loc: Loc) -> int:
        """The line of a place, or of the nearest place above it that is in the file."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, what: str) -> Problem:
        return Problem(self.name, self.line(loc), dotted(loc), what)


def dotted(loc: Loc) -> str:
    """('gpu', 'tiers', 0, 'name') → 'gpu.tiers[0].name'."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def read_yaml(path: Path, *, name: str) -> YamlFile:
    """Read one file; a mistake in it becomes a Problem, never an exception."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        return YamlFile(name, None, {}, (Problem(name, 1, "", f"cannot be read: {e.strerror or e}"),))
    return parse_yaml(raw, name=name)


def parse_yaml(raw: bytes, *, name: str) -> YamlFile:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        return YamlFile(name, None, {}, (Problem(name, line, "", "is not UTF-8 text"),))
    try:
        _check_depth(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = mark.line + 1 if mark else 1
        why = " ".join(str(p) for p in (e.context, e.problem) if p)
        return YamlFile(name, None, {}, (Problem(name, line, "", f"is not YAML: {why}"),))
    except (yaml.YAMLError, ValueError) as e:
        return YamlFile(name, None, {}, (Problem(name, 1, "", f"is not YAML: {e}".splitlines()[0]),))
    except _TooDeepError as e:
        return YamlFile(name, None, {}, (Problem(name, e.line, "", "is nested too deeply"),))
    if node is None:
        return YamlFile(name, None, {}, (Problem(name, 1, "", "is empty"),))
    reader = _Reader(name)
    data = reader.convert(node, ())
    return YamlFile(name, data, reader.lines, tuple(reader.problems))


class _TooDeepError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_OPEN:
                raise _TooDeepError(event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """Nodes → plain data. Anchors are refused: nobody can say on which line their content stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Loc, int] = {}
        self.problems: list[Problem] = []
        self._seen: set[int] = set()
        self._construct: Any = yaml.SafeLoader("")

    def _say(self, node: Any, loc: Loc, what: str) -> None:
        self.problems.append(Problem(self.name, node.start_mark.line + 1, dotted(loc), what))

    def convert(self, node: Any, loc: Loc) -> Any:
        self.lines.setdefault(loc, node.start_mark.line + 1)
        if len(loc) > _MAX_DEPTH:
            self._say(node, loc[:3], "is nested too deeply")
            return None
        if not isinstance(node, yaml.ScalarNode):
            if id(node) in self._seen:
                self._say(node, loc, "anchors and aliases are not used here: write the value out")
                return None
            self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*loc, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _mapping(self, node: Any, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._say(key_node, loc, "a key must be plain text")
                continue
            key = str(key_node.value)
            where = (*loc, key)
            if key in found:
                self._say(key_node, where, f"stands here twice; first on line {self.lines[where]}")
                continue
            self.lines[where] = key_node.start_mark.line + 1
            found[key] = self.convert(value_node, where)
        return found

    def _scalar(self, node: Any, loc: Loc) -> Any:
        kind = node.tag.rpartition(":")[2]
        maker = {
            "int": self._construct.construct_yaml_int,
            "float": self._construct.construct_yaml_float,
            "bool": self._construct.construct_yaml_bool,
            "null": lambda _node: None,
        }.get(kind)
        if maker is None:
            if kind not in ("str", "timestamp"):
                self._say(node, loc, f"the tag {node.tag!r} is not used here")
            return str(node.value)
        try:
            return maker(node)
        except (ValueError, OverflowError, LookupError):
            return str(node.value)
