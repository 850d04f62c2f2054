"""Arguments in the caller's words: ``--out DIR`` on the command line, ``out='DIR'`` in Python.

A message never spells an argument itself. It calls ``argument`` where it names one, ``passing`` where it
says what to pass, and ``calling`` where it says what to call. The command line switches all three with
``called_from``. ``tests/test_caller.py`` reads every message.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from types import EllipsisType
from typing import Literal

Caller = Literal["python", "command line"]
Value = str | bool | int | list[str] | EllipsisType

_FLAGS = {"histories": "--no-histories", "k": "-k", "query_id": "--query", "settings": "--set"}
"""Arguments whose option is not their name with dashes."""
_SWITCHES = {("refit", "all"): "--refit-all"}
"""Values that are an option of their own."""

_on_command_line = False


@contextmanager
def called_from(caller: Caller) -> Iterator[None]:
    """Name arguments as this caller does, in every thread of the process, until the end of the block.

    Args:
        caller: ``"python"`` names parameters, and so do requests to a server.
    """
    global _on_command_line
    before, _on_command_line = _on_command_line, caller == "command line"
    try:
        yield
    finally:
        _on_command_line = before


def argument(name: str) -> str:
    """Return what the caller calls an argument: ``--query-column`` or ``query_column``.

    Args:
        name: The parameter's name in Python.
    """
    return flag(name) if _on_command_line else name


def flag(name: str) -> str:
    """Return the option of the command line for a parameter."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def passing(**values: Value) -> str:
    """Return how the caller passes an argument: ``--split temporal`` or ``split='temporal'``.

    Args:
        values: One parameter with its value. ``...`` leaves the value open: ``--items`` or ``items=...``.
            A list is an option for each of its entries.
    """
    ((name, value),) = values.items()
    if not _on_command_line:
        return f"{name}=..." if value is ... else f"{name}={value!r}"
    if isinstance(value, bool | EllipsisType):
        return flag(name)
    if isinstance(value, str) and (name, value) in _SWITCHES:
        return _SWITCHES[name, value]
    entries = value if isinstance(value, list) else [value]
    return " ".join(f"{flag(name)} {quote(str(entry))}" for entry in entries)


def calling(command: str, **values: Value) -> str:
    """Return a command as the caller gives it, such as ``twotower train --out DIR``.

    Args:
        command: Its name, which is the function's in Python.
        values: What ``passing`` takes, one for each argument that matters.
    """
    given = [passing(**{name: value}) for name, value in values.items()]
    if _on_command_line:
        return " ".join(("`twotower", command, *given)) + "`"
    return f"`twotower.{command}({', '.join(('...', *given))})`"
