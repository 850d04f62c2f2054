"""Where files may be written, under which names, and why one could not be."""

import errno
import os
import re
from pathlib import Path

from twotower.caller import argument
from twotower.errors import ConfigError, TwoTowerError

LONGEST_NAME = 200
"""Bytes of a new name. File systems allow 255; temporary files beside it have longer names."""

_FULL = re.compile(r"No space left|requested and \d+ written")
"""What polars and numpy say of a full disk."""


def reason_of(error: Exception) -> str:
    """Return why a file could not be read or written: what the system says, or else the first line."""
    said = str(error).strip()
    if getattr(error, "errno", None) == errno.ENOSPC or _FULL.search(said):
        return "the disk is full"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return said.splitlines()[0] if said else type(error).__name__


def shown(path: str | Path) -> str:
    """Return a path as text that UTF-8 can hold; other bytes are written in hexadecimal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(path: str | Path) -> bool:
    """Return whether a path, or another argument of a command, is UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python has a lone surrogate for each byte that is not
        return False
    return True


def check_new_name(path: str | Path, longest: int = LONGEST_NAME) -> None:
    """Refuse a name that cannot be written, before the work and not after it.

    Args:
        path: A file or a folder to write, as ``--out`` names it.
        longest: Bytes that its name may have.

    Raises:
        ConfigError: The path is not UTF-8, its name is too long or holds a control character.
    """
    name = Path(path).name
    if not is_utf8(path):
        raise ConfigError(
            f"{argument('out')} must be UTF-8, got {shown(path)!r}; choose another name."
        )
    if any(ord(character) < 32 or character == "\x7f" for character in str(path)):
        raise ConfigError(
            f"{argument('out')} must hold no control characters, got {str(path)!r}; choose another name."
        )
    length = len(name.encode())
    if length > longest:
        raise ConfigError(
            f"{argument('out')} must be a name of at most {longest} bytes, got {length}; "
            "choose a shorter one."
        )


def check_new_file(path: str | Path, longest: int = LONGEST_NAME) -> None:
    """Refuse a place at which no file can be written, before the work and not after it.

    Args:
        path: As ``--out`` names it.
        longest: Bytes that its name may have.

    Raises:
        ConfigError: It is a folder; or see ``check_new_name`` and ``check_folder_of``.
    """
    check_new_name(path, longest)
    if Path(path).is_dir():
        raise ConfigError(
            f"{argument('out')} must be a file, got the folder {str(path)!r}; name a file in it."
        )
    check_folder_of(path)


def check_folder_of(path: str | Path, error: type[TwoTowerError] = ConfigError) -> None:
    """Refuse a place in a folder that does not exist, or that cannot be written to.

    Args:
        path: As ``--out`` names it.
        error: What is raised then.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise error(
            f"{argument('out')} must be in a folder that exists, got {str(path)!r}; make it first."
        )
    if not os.access(folder, os.W_OK):
        raise error(
            f"{argument('out')} must be in a writable folder, got {str(path)!r}; choose another."
        )
