"""One tree of exceptions.

TwoTowerError
├── ArgumentError   an argument of a function is out of range                 (also a ValueError)
├── ConfigError     a setting is wrong: an unknown key, a value out of range   (also a ValueError)
├── DataError       a table is wrong: unreadable, no item column, a null id    (also a ValueError)
├── BundleError     a bundle is damaged, incomplete or from a newer version
│   └── JournalError   a server's journal cannot be read or written
├── ExportError     a model or a catalogue that another system cannot take, or a place that refuses it
├── FilterError     a filter cannot be read or does not fit the items; says where  (also a ValueError)
├── ServerError     a server refused, failed or could not be reached
├── NothingLearntError  Ctrl-C came before a training had anything to keep
├── OtherProcessError   another process of the same training refused or was lost; it says why
└── MissingExtraError  an optional library is not installed; says which extra  (also an ImportError)

Each message names the argument as the user typed it, the rule, what was given, and what to do. Any
other exception is a bug: the command line ends with a trace, the server answers 500.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from twotower.caller import argument


class TwoTowerError(Exception):
    """Base of everything that this library raises on purpose."""


class ArgumentError(TwoTowerError, ValueError):
    """An argument of a function is out of range."""


class ConfigError(TwoTowerError, ValueError):
    """A setting is unknown or out of range."""


class DataError(TwoTowerError, ValueError):
    """A table cannot be used as it is."""


class BundleError(TwoTowerError):
    """A bundle is absent, damaged, incomplete or newer than this library."""


class JournalError(BundleError):
    """A server's journal cannot be opened, read or written."""


class ExportError(TwoTowerError):
    """Another system cannot take a model or a catalogue, or the place for it cannot be used."""


class FilterError(TwoTowerError, ValueError):
    """A filter cannot be read, or asks of a column what it does not hold."""


class ServerError(TwoTowerError):
    """A server refused to answer, failed, or could not be reached."""


class NothingLearntError(TwoTowerError):
    """Ctrl-C came before anything was learnt that could be kept."""


class OtherProcessError(TwoTowerError):
    """Another process of the same training refused or was lost; it has said why."""


class MissingExtraError(TwoTowerError, ImportError):
    """An optional library is not installed."""


def check_least(least: int, **given: int | None) -> None:
    """Refuse arguments that are below ``least``; None is passed over.

    Raises:
        ArgumentError: One is; it is called as the caller calls it.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise ArgumentError(f"{argument(name)} must be at least {least}, got {value}.")


def check_positive(*, or_none: bool = False, **given: float | None) -> None:
    """Refuse arguments that are not above 0 and finite.

    Args:
        or_none: Whether None is allowed, too.
        given: The arguments, by their names.

    Raises:
        ArgumentError: One is; it is called as it is here.
    """
    ending = ", or None" if or_none else ""
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise ArgumentError(f"{name} must be above 0 and finite{ending}, got {value}.")


def _folded(name: str) -> str:
    return name.strip().casefold()


def nearest(name: str, known: Iterable[str], form: Callable[[str], str] = _folded) -> str | None:
    """Return the known name that is probably meant by one that is not known; None where none is near.

    Args:
        name: What was given.
        known: What could have been meant.
        form: Names that are equal in this form mean the same; by default without their case.
    """
    known = list(known)
    same = [each for each in known if form(each) == form(name)]
    return next(iter(same or get_close_matches(name, known, n=1)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = ".") -> str:
    """Return the end of a message about a name that is not known: the nearest that is, or ``otherwise``."""
    near = nearest(name, known)
    return otherwise if near is None else f"; did you mean {near!r}?"
