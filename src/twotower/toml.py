"""TOML: a file or one value read, a key or one value written."""

import json
import tomllib
from pathlib import Path

from twotower.caller import argument
from twotower.errors import ConfigError


def read_toml(path: str | Path) -> dict[str, object]:
    """Return the table that a TOML file holds.

    Raises:
        ConfigError: The file is missing, unreadable or not TOML.
    """
    called = f"{argument('config')} {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows writes a mark
    except FileNotFoundError as error:
        raise ConfigError(
            f"{argument('config')} must be a file, got {str(path)!r}, which is missing."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{called} cannot be read: {error}.") from error
    return parse_toml(text, called)


def parse_toml(text: str, called: str) -> dict[str, object]:
    """Return the table that a text in TOML holds.

    Args:
        text: The whole text.
        called: Where it comes from, for messages.

    Raises:
        ConfigError: It is not TOML, or its tables are nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{called} must be TOML, got tables nested too deeply.") from error
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{called} must be TOML: {error}.") from error


def parse_value(text: str) -> object:
    """Return what ``text`` says in TOML, or ``text`` itself where it is no TOML value."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, deep lists
        return text
    return table["value"] if len(table) == 1 else text


def toml_key(key: str) -> str:
    """Return a key as TOML, in quotes where it needs them."""
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else toml_value(key)


def toml_value(value: object) -> str:
    """Return a string, boolean, number or list of those as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, save that TOML wants one for the delete character, too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    return repr(float(value)) if isinstance(value, float) else str(value)  # numpy's float, too
