"""Public names of a package, listed in its ``__init__.pyi`` and imported when first used.

The stub is the only list: type checkers and editors read it as it is, and ``lazy`` reads it when the
package is imported. So ``import twotower`` imports neither PyTorch nor polars.
"""

import sys
from _ast import (  # ``ast`` itself takes longer to import than all of this
    ImportFrom,
    Module,
    PyCF_ONLY_AST,
)
from collections.abc import Callable
from importlib import import_module


def lazy(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Name of the package, whose ``__init__.py`` is running. Its ``__init__.pyi`` holds lines
            ``from module import name as name``.
    """
    file = f"{sys.modules[package].__file__}i"
    with open(file, encoding="utf-8") as opened:  # noqa: PTH123 - importing pathlib takes long, too
        stub = compile(opened.read(), file, "exec", PyCF_ONLY_AST)
    assert isinstance(stub, Module)
    home_of = {
        alias.name: line.module
        for line in stub.body
        if isinstance(line, ImportFrom) and line.module is not None
        for alias in line.names
    }

    def get(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return get, lambda: sorted(home_of), sorted(home_of)
