"""ComfyUI's flags as a table: reading command lines with it, and putting several over one another.

The table is made at build from the pinned tree's own parser (`comfyrun.flags`), so that a start checks
flags without importing ComfyUI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from comfyrun import advice, baked
from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SCHEMA = 1

Arity = int | Literal["?", "*", "+"]
TypeName = Literal["str", "int", "float", "directory"]

# What argparse takes for a value although it begins with a dash.
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


@dataclass(frozen=True, kw_only=True)
class Flag:
    names: tuple[str, ...]
    arity: Arity
    type: TypeName = "str"
    choices: tuple[str, ...] | None = None
    default: object = None
    const: object = None
    repeats: bool = False  # given twice, both count (argparse's append)

    @property
    def bounds(self) -> tuple[int, int | None]:
        """The fewest and the most values it takes."""
        match self.arity:
            case "?":
                return 0, 1
            case "*":
                return 0, None
            case "+":
                return 1, None
            case number:
                return number, number

    def mistake(self, values: Sequence[str]) -> str | None:
        """What is wrong with these values, or None."""
        fewest, most = self.bounds
        if len(values) < fewest or (most is not None and len(values) > most):
            return f"takes {_count(fewest, most)}, got {' '.join(map(repr, values)) or 'none'}"
        for value in values:
            if self.choices is not None and value not in self.choices:
                return f"{value!r} is none of {', '.join(self.choices)}{nearest(value, self.choices)}"
            if self.type in ("int", "float") and not _is_number(value, self.type):
                kind = "a whole number" if self.type == "int" else "a number"
                return f"{value!r} is not {kind}"
        return None


@dataclass(frozen=True, kw_only=True)
class Option:
    """A flag as somebody gave it."""

    flag: Flag
    name: str
    values: tuple[str, ...]
    origin: str

    @property
    def tokens(self) -> tuple[str, ...]:
        # One value that looks like a flag (`-v5`) is only understood in this form.
        if len(self.values) == 1 and self.values[0].startswith("-"):
            return (f"{self.name}={self.values[0]}",)
        return (self.name, *self.values)

    def __str__(self) -> str:
        return " ".join((self.name, *self.values))


@dataclass(frozen=True, kw_only=True)
class FlagTable:
    flags: tuple[Flag, ...]
    exclusive: tuple[tuple[str, ...], ...] = ()
    _by_name: Mapping[str, Flag] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {name: flag for flag in self.flags for name in flag.names})

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def names(self) -> Iterable[str]:
        return self._by_name.keys()

    def get(self, name: str) -> Flag | None:
        return self._by_name.get(name)

    def parse(self, tokens: Sequence[str], origin: str) -> tuple[list[Option], list[str]]:
        """The options in `tokens` and every mistake in them.

        The grammar is argparse's, less its abbreviations: `--cpu-vae` must never be read for a
        misspelt `--cpu-va`, nor change its meaning with the next ComfyUI.
        """
        options: list[Option] = []
        mistakes: list[str] = []
        position = 0
        while position < len(tokens):
            token = tokens[position]
            position += 1
            name, equals, joined = token.partition("=")
            if token not in self and not (equals and name in self):
                mistakes.append(f"{origin}: {self._stranger(token)}")
                if not self._is_value(token):  # its values belong to it: one message, not three
                    while position < len(tokens) and self._is_value(tokens[position]):
                        position += 1
                continue
            if token in self:
                name, equals = token, ""
            flag = self._by_name[name]
            values = [joined] if equals else []
            _, most = flag.bounds
            while not equals and position < len(tokens) and (most is None or len(values) < most):
                if not self._is_value(tokens[position]):
                    break
                values.append(tokens[position])
                position += 1
            wrong = flag.mistake(values)
            if wrong:
                mistakes.append(f"{origin}: {name} {wrong}")
            else:
                options.append(Option(flag=flag, name=name, values=tuple(values), origin=origin))
        mistakes += self._contradictions(options)
        return options, mistakes

    def overlay(self, below: Sequence[Option], above: Sequence[Option]) -> tuple[list[Option], list[str]]:
        """`above` put over `below`: what is left, and one note for each flag that gave way to another."""
        kept = list(below)
        notes: list[str] = []
        for option in above:
            again = [old for old in kept if old.flag is option.flag and not option.flag.repeats]
            excluded = [old for old in kept if self.excludes(old.flag, option.flag)]
            notes += [f"{option.name} ({option.origin}) replaces {old} ({old.origin})" for old in excluded]
            kept = [old for old in kept if old not in excluded]
            if again:  # in its place, so that a command line reads the same whoever said what
                place = kept.index(again[0])
                kept = [old for old in kept if old not in again]
                kept.insert(place, option)
            else:
                kept.append(option)
        return kept, notes

    def _contradictions(self, options: Sequence[Option]) -> list[str]:
        return [
            f"{one.origin}: {one.name} and {other.name} exclude each other: keep one of them"
            for index, one in enumerate(options)
            for other in options[index + 1 :]
            if self.excludes(one.flag, other.flag)
        ]

    def excludes(self, one: Flag, other: Flag) -> bool:
        return one is not other and any(
            any(name in group for name in one.names) and any(name in group for name in other.names)
            for group in self.exclusive
        )

    def _is_value(self, token: str) -> bool:
        if token in self or (token.partition("=")[0] in self and "=" in token):
            return False
        if not token.startswith("-") or len(token) == 1:
            return True
        return " " in token or _NEGATIVE_NUMBER.fullmatch(token) is not None

    def _stranger(self, token: str) -> str:
        if self._is_value(token):
            return f"{token!r} belongs to no flag"
        name = token.partition("=")[0]
        if name in advice.GONE:
            return f"this ComfyUI has no flag {name}: {advice.GONE[name]}"
        return f"this ComfyUI has no flag {name}{nearest(name, self.names)}"


def _count(fewest: int, most: int | None) -> str:
    match fewest, most:
        case 0, 0:
            return "no value"
        case 1, 1:
            return "one value"
        case _, None:
            return "at least one value" if fewest else "any number of values"
        case 0, 1:
            return "at most one value"
        case _:
            return f"{fewest} values"


def _is_number(value: str, kind: Literal["int", "float"]) -> bool:
    try:
        int(value) if kind == "int" else float(value)
    except ValueError:
        return False
    return True


def to_json(table: FlagTable) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "flags": [
            {
                "names": list(flag.names),
                "arity": flag.arity,
                "type": flag.type,
                "choices": None if flag.choices is None else list(flag.choices),
                "default": flag.default,
                "const": flag.const,
                "repeats": flag.repeats,
            }
            for flag in table.flags
        ],
        "exclusive": [list(group) for group in table.exclusive],
    }


def read(path: Path) -> FlagTable:
    value = baked.read(path, SCHEMA)
    try:
        return from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a table of flags: {error!r}; build the image again") from None


def from_json(value: Mapping[str, object]) -> FlagTable:
    """Raises KeyError, TypeError or ValueError for what `to_json` never writes."""
    flags, exclusive = value["flags"], value["exclusive"]
    if not isinstance(flags, list) or not isinstance(exclusive, list):
        raise TypeError("flags and exclusive must be lists")
    return FlagTable(
        flags=tuple(_flag(item) for item in flags),
        exclusive=tuple(tuple(map(str, group)) for group in exclusive),
    )


def _flag(item: Mapping[str, object]) -> Flag:
    names, arity, kind, choices = item["names"], item["arity"], item["type"], item["choices"]
    if not isinstance(names, list) or not names:
        raise TypeError("a flag without a name")
    if not (arity in ("?", "*", "+") or (isinstance(arity, int) and arity >= 0)):
        raise ValueError(f"{names[0]}: arity {arity!r}")
    if kind not in ("str", "int", "float", "directory"):
        raise ValueError(f"{names[0]}: type {kind!r}")
    if choices is not None and not isinstance(choices, list):
        raise TypeError(f"{names[0]}: choices {choices!r}")
    return Flag(
        names=tuple(map(str, names)),
        arity=arity,
        type=kind,
        choices=None if choices is None else tuple(map(str, choices)),
        default=item["default"],
        const=item["const"],
        repeats=bool(item["repeats"]),
    )
