"""Optional libraries, each with the extra that installs it."""

from importlib import import_module
from types import ModuleType

from twotower.errors import MissingExtraError


def library(name: str, wanted_by: str) -> ModuleType:
    """Return a module of a library that the extra ``baselines`` installs.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{wanted_by} needs the library {name.split('.')[0]!r}; "
            "install it with pip install 'twotower[baselines]'."
        ) from error
