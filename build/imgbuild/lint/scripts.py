"""Rules for scripts, in shell and in Python."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from imgbuild.lint.programs import ProgramRules
from imgbuild.lint.python import catches_everything, dotted, parts, words_of
from imgbuild.lint.shell import Command, Script

if TYPE_CHECKING:
    from imgbuild.lint.finding import Finding
    from imgbuild.lint.heredoc import Heredoc

Language = Literal["shell", "python"]
_PYTHON_DOWNLOADS = ("urlopen", "urlretrieve", "requests.get", "httpx.get")


class ScriptRules(ProgramRules):
    def script(self, kind: Language, text: str, line: int) -> None:
        if kind == "python":
            tree = ast.increment_lineno(ast.parse(text), line - 1)
            self.commands_of_python(tree)
            self.python(tree)
        else:
            self.shell(text, line)

    def heredoc(self, heredoc: Heredoc) -> None:
        """What is fed to a program, or becomes a file: a script unless it is said to be Python."""
        words = heredoc.command.split()
        python = any(re.match(r"python|.*\.py$", w.rpartition("/")[2]) for w in words)
        kind: Language = "python" if python or language("", heredoc.text) == "python" else "shell"
        self.script(kind, heredoc.text, heredoc.line)

    def shell(self, text: str, line: int) -> None:
        self.found += [replace(f, line=f.line + line - 1) for f in _of_shell(text)]

    def commands_of_python(self, tree: ast.AST) -> None:
        """Commands are lists that are written out; `command += […]` goes on with the one of that name."""
        for scope in (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef)):
            named: dict[str, Command] = {}
            for node in parts(scope):
                words = words_of(getattr(node, "value", None), named)
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
                            lists = (words_of(a, named) for a in call.args if not isinstance(a, ast.Name))
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
        hashes = any(dotted(n) == "hashlib" for n in nodes if isinstance(n, ast.Name))
        for node in nodes:
            match node:
                case ast.Call(
                    func=function, args=[ast.Constant(value=str(script)), *_], keywords=keywords
                ) if dotted(function) == "os.system" or any(k.arg == "shell" for k in keywords):
                    self.shell(script, node.lineno)
                case ast.Call(func=function) if dotted(function).endswith(_PYTHON_DOWNLOADS) and not hashes:
                    self.report(
                        node.lineno, "unhashed-download", f"{dotted(function)}, and hashlib is never asked"
                    )
                case ast.ExceptHandler(type=caught, body=[ast.Pass()]) if catches_everything(caught):
                    self.report(node.lineno, "swallowed-failure", "this handler passes over every failure")
                case ast.Call(func=function, args=[caught]) if dotted(function).endswith(
                    "suppress"
                ) and catches_everything(caught):
                    self.report(node.lineno, "swallowed-failure", "suppress() of every failure")


def language(name: str, text: str) -> Language | None:
    first = text.partition("\n")[0]
    if name.endswith(".py") or re.match(r"#!.*\bpython", first):
        return "python"
    return "shell" if name.endswith(".sh") or re.match(r"#!.*sh\b", first) else None


@functools.lru_cache(maxsize=1024)
def _of_shell(text: str) -> tuple[Finding, ...]:
    check = ScriptRules()
    read = Script(text, 1)
    check.commands(read.commands)
    for heredoc in read.heredocs:
        check.heredoc(heredoc)
    return tuple(check.found)
