"""Run when the image is built: the pinned ComfyUI's own parser as a table, and the profiles checked by it.

    python3 -m comfyrun.flags --tree /opt/comfyui --profile profile.json -o flags.json

Needs neither torch nor ComfyUI's requirements: of the tree only comfy/cli_args.py is executed.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import importlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from comfyrun import flagtable
from comfyrun import profile as profile_module
from comfyrun.errors import ComfyrunError, ConfigError, nearest
from comfyrun.flagtable import Flag, FlagTable
from comfyrun.layout import Layout
from comfyrun.options import REQUIRED_FLAGS, own_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from comfyrun.flagtable import Arity, Option, TypeName
    from comfyrun.profile import Image


class RefusedError(Exception):
    """The tree's parser would not start with these arguments."""


def read_table(tree: Path) -> FlagTable:
    """The flags of the ComfyUI in `tree`. Raises ConfigError when it is none."""
    try:
        parser = _execute(tree, None).get("parser")
    except RefusedError as error:
        raise ConfigError(f"{tree}: comfy/cli_args.py does not start: {error}") from None
    if not isinstance(parser, argparse.ArgumentParser):
        raise ConfigError(f"{tree}: comfy/cli_args.py has no `parser`")
    # argparse has no public way to list what a parser knows; both names are as old as argparse.
    actions = [a for a in parser._actions if a.option_strings and not isinstance(a, argparse._HelpAction)]  # noqa: SLF001
    groups = [
        tuple(name for action in group._group_actions for name in action.option_strings)  # noqa: SLF001
        for group in parser._mutually_exclusive_groups  # noqa: SLF001
    ]
    return FlagTable(flags=tuple(_flag(action) for action in actions), exclusive=tuple(groups))


def refusal(tree: Path, tokens: Sequence[str]) -> str | None:
    """Why the tree's own parser would not start with `tokens`, or None."""
    try:
        _execute(tree, tokens)
    except RefusedError as error:
        return str(error)
    return None


def mistakes(table: FlagTable, image: Image, tree: Path, layout: Layout) -> list[str]:
    """Everything in the profiles that this ComfyUI would not take, one message for each."""
    found = [
        f"this ComfyUI has no flag {name}{nearest(name, table.names)}, which comfyrun needs"
        for name in REQUIRED_FLAGS
        if name not in table
    ]
    for profile in image.profiles.values():
        found += _mistakes_of(
            table, own_options(table, layout), profile.tokens, f"profile {profile.name}", tree
        )
    default = image.profiles.get("default")
    for tier in image.tiers:
        below, _ = table.parse(default.tokens if default else (), "profile default")
        own, _ = table.overlay(own_options(table, layout), below)
        found += _mistakes_of(table, own, tier.tokens(display=True), f"tier {tier.name}", tree)
    return found


def _mistakes_of(
    table: FlagTable, below: Sequence[Option], tokens: Sequence[str], origin: str, tree: Path
) -> list[str]:
    options, wrong = table.parse(tokens, origin)
    if wrong:
        return wrong
    # A second opinion: the parser knows rules that no table holds (checks after parsing).
    merged, _ = table.overlay(below, [o for o in options if o.flag.type != "directory"])
    refused = refusal(tree, [token for option in merged for token in option.tokens])
    return [f"{origin}: ComfyUI's parser refuses it: {refused}"] if refused else []


def _execute(tree: Path, tokens: Sequence[str] | None) -> dict[str, object]:
    """The names that comfy/cli_args.py defines, run with `tokens` as its command line."""
    path = tree / "comfy" / "cli_args.py"
    if not path.is_file() or not (tree / "comfy" / "options.py").is_file():
        raise ConfigError(f"{tree} is no ComfyUI tree: it has no comfy/cli_args.py and comfy/options.py")
    said = io.StringIO()
    try:
        with _as_main(tree, tokens or ()), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            importlib.import_module("comfy.options").enable_args_parsing(tokens is not None)
            return runpy.run_path(str(path))
    except SystemExit:
        lines = said.getvalue().strip().splitlines()
        raise RefusedError(lines[-1] if lines else "it exits without a word") from None
    except Exception as error:  # noqa: BLE001  (foreign code: whatever it raises is the answer)
        raise RefusedError(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _as_main(tree: Path, tokens: Sequence[str]) -> Iterator[None]:
    argv, path, writes = sys.argv, list(sys.path), sys.dont_write_bytecode
    sys.argv, sys.path[:0] = ["main.py", *tokens], [str(tree)]
    sys.dont_write_bytecode = True  # the tree is a build's input and stays as it is
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.dont_write_bytecode = argv, path, writes
        for name in [n for n in sys.modules if n == "comfy" or n.startswith("comfy.")]:
            del sys.modules[name]


def _flag(action: argparse.Action) -> Flag:
    choices = action.choices
    if choices is None and isinstance(action.type, type) and issubclass(action.type, enum.Enum):
        choices = [member.value for member in action.type]
    # Append and the like; an action of the tree's own that takes lists appends too (0.33's --verbose).
    repeats = isinstance(action, argparse._AppendAction | argparse._AppendConstAction | argparse._CountAction)  # noqa: SLF001
    own = type(action).__module__ != "argparse" and isinstance(action.default, list)
    return Flag(
        names=tuple(action.option_strings),
        arity=_arity(action.nargs),
        type=_type(action.type),
        choices=None if choices is None else tuple(str(choice) for choice in choices),
        default=_plain(action.default),
        const=_plain(action.const),
        repeats=repeats or own,
    )


def _arity(nargs: int | str | None) -> Arity:
    match nargs:
        case None:
            return 1
        case int():
            return nargs
        case "?" | "*" | "+":
            return nargs
        case _:
            return "*"  # argparse.REMAINDER and PARSER


def _type(kind: object) -> TypeName:
    if kind is int:
        return "int"
    if kind is float:
        return "float"
    return "directory" if getattr(kind, "__name__", "") == "is_valid_directory" else "str"


def _plain(value: object) -> object:
    """`value` as JSON can hold it."""
    match value:
        case enum.Enum():
            return _plain(value.value)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="comfyrun.flags", description="Bake the table of ComfyUI's flags.")
    parser.add_argument("--tree", type=Path, required=True, help="the pinned ComfyUI")
    parser.add_argument(
        "--profile", type=Path, required=True, help="profile.json, whose profiles are checked"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the flags.json to write")
    given = parser.parse_args(arguments)
    try:
        image = profile_module.read(given.profile)
        table = read_table(given.tree)
        wrong = mistakes(table, image, given.tree, Layout())
        if wrong:
            raise ConfigError(*(f"target {image.target}: {line}" for line in wrong))
        text = json.dumps(flagtable.to_json(table), indent=1, sort_keys=True)
        given.output.write_text(text + "\n", encoding="utf-8")
    except ComfyrunError as error:
        for message in error.messages:
            print(f"comfyrun.flags: {message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"comfyrun.flags: {given.output} cannot be written: {error.strerror}", file=sys.stderr)
        return ConfigError.exit_code
    profiles = ", ".join(sorted(image.profiles))
    print(f"{len(table.flags)} flags of ComfyUI {image.comfyui}; profiles accepted: {profiles}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
