"""Python, as much of it as says which commands it runs and which failures it passes over."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgbuild.lint.shell import Command


def parts(scope: ast.AST) -> Iterator[ast.AST]:
    """The simple statements of a function or a module in their order, and what is asked in `if` and `with`."""
    for node in ast.iter_child_nodes(scope):
        if hasattr(node, "body") and not isinstance(node, ast.FunctionDef):
            yield from parts(node)
        elif not isinstance(node, ast.FunctionDef):
            yield node


def catches_everything(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return caught is None or any(dotted(n) in ("BaseException", "Exception") for n in names)


def dotted(node: ast.expr | None) -> str:
    """`a.b` as it is written; of what is no name only the end."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def words_of(node: ast.expr | None, named: Mapping[str, Command]) -> tuple[str, ...]:
    """The words of a list that is written out, `$` for what only a run knows; none of anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words_of(node.left, named) + words_of(node.right, named)
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
                found += words_of(value, named) or ("$",)
            case _:
                found.append("python" if dotted(element) == "sys.executable" else "$")
    return tuple(found)
