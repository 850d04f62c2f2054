"""What commands share: consoles, JSON, parsing of ids."""

import json
import math
import sys
from typing import Any

from rich.console import Console

from twotower.errors import ConfigError


def console(*, json_wanted: bool) -> Console:
    """Return where words for people go: beside the JSON, to the standard error."""
    return Console(stderr=json_wanted)


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n")


def cutoffs(text: str) -> tuple[int, ...]:
    """Return the numbers of ``10,20,100``.

    Raises:
        ConfigError: Something else stands there.
    """
    try:
        return tuple(int(piece) for piece in text.split(","))
    except ValueError as error:
        raise ConfigError(f"-k must be whole numbers with commas between, got {text!r}.") from error


def ids(text: str) -> list[int | str]:
    """Return the ids of ``1,2,3``; integers and strings of digits are the same to a vocabulary."""
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
