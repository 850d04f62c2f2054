"""Every text of the package, read from its source; those whose words depend on the caller, in both forms.

``python tests/messages.py`` prints the list.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer.main

import twotower
from twotower import caller
from twotower.cli import app

SOURCE = Path(twotower.__file__).parent
FUNCTIONS = {"argument", "passing", "calling"}
_IN_TEXT = re.compile(r"\{(argument|passing)\[([^\]=]+)=?([^\]]*)\]\}")


@cache
def options() -> frozenset[str]:
    """Return every option of every command, such as ``--query-column``."""
    tree = typer.main.get_command(app)
    commands = tree.commands.values()  # type: ignore[attr-defined]
    return frozenset(option for each in commands for one in each.params for option in one.opts)


@dataclass(frozen=True)
class Text:
    """A string of the source that is no docstring.

    Args:
        where: File and line.
        node: The constant, or the f-string with all its parts.
        is_argument: Whether it is an element of a list, as the arguments of a process are.
    """

    where: str
    node: ast.Constant | ast.JoinedStr
    is_argument: bool

    @property
    def in_cli(self) -> bool:
        """Whether only the command line says it."""
        return self.where.startswith("cli/")

    @property
    def literal(self) -> str:
        """What stands in the source, with ``{}`` for each value, and without those of ``caller``."""
        if isinstance(self.node, ast.Constant):
            return _IN_TEXT.sub("{}", str(self.node.value))
        parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in self.node.values)
        return "".join(map(str, parts))

    def names(self) -> list[str]:
        """Return the arguments that it names through ``caller``; ``*`` stands for what is not fixed."""
        if isinstance(self.node, ast.Constant) and "[" not in str(self.node.value):
            return []
        text = ast.unparse(self.node)
        found = [name for _, name, _ in _IN_TEXT.findall(text)]
        for call in _calls(self.node):
            found += [_constant(each) for each in call.args if call.func.id == "argument"]  # type: ignore[attr-defined]
            for keyword in call.keywords:
                keys = [ast.Constant(keyword.arg)] if keyword.arg else keyword.value.keys  # type: ignore[attr-defined]
                found += [_constant(key) for key in keys]
        return found

    def said(self, by: caller.Caller) -> str:
        """Return the text as a caller gets it, values by the names of the source."""
        with caller.called_from(by):
            if isinstance(self.node, ast.Constant):
                return _IN_TEXT.sub(_rendered, str(self.node.value))
            return "".join(_part(part) for part in self.node.values)


def _rendered(found: re.Match[str]) -> str:
    function, name, value = found.groups()
    value = value.replace("@", "")
    return caller.argument(name) if function == "argument" else caller.passing(**{name: value})


def _constant(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        str(p.value) if isinstance(p, ast.Constant) else "*"
        for p in getattr(node, "values", [None])
    )


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and getattr(each.func, "id", None) in FUNCTIONS:
            yield each


def _part(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    source = ast.unparse(part.value)
    if not any(True for _ in _calls(part.value)):
        return "{" + source + "}"
    known = {name: getattr(caller, name) for name in FUNCTIONS}
    free = {n.id for n in ast.walk(part.value) if isinstance(n, ast.Name)} - FUNCTIONS
    return str(eval(source, known | {name: _Named(name) for name in free}))


class _Named(str):
    """A value that is known by its name in the source, and so are its attributes."""

    def __getattr__(self, name: str) -> "_Named":
        return _Named(f"{self}.{name}")


@cache
def texts() -> tuple[Text, ...]:
    """Return every string of the package but docstrings and those of ``caller`` itself."""
    return tuple(_texts())


def _texts() -> Iterator[Text]:
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        if name == "caller.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield from _texts_in(tree, name, is_argument=False)


def _texts_in(node: ast.AST, name: str, *, is_argument: bool) -> Iterator[Text]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        yield Text(f"{name}:{node.lineno}", node, is_argument)
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts_in(child, name, is_argument=isinstance(node, ast.List))


@cache
def differing() -> list[Text]:
    """Return the texts whose words differ for the command line and Python."""
    return [text for text in texts() if text.names()]


if __name__ == "__main__":
    for text in differing():
        lines = (text.where, text.said("command line"), text.said("python"))
        sys.stdout.write("\n    ".join(lines) + "\n")
