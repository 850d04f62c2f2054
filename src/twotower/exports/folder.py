"""What an export leaves: a new folder, whole or not at all, and a word on what is in it."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polars.exceptions import PolarsError

from twotower.abandoned import writing
from twotower.caller import argument
from twotower.errors import ExportError
from twotower.paths import check_folder_of, check_new_name, reason_of


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Args:
        place: A folder, or what else it is known by where it went.
        num_items: Items in it.
        num_queries: Queries in it.
        notes: Sentences that whoever reads the export should know.
    """

    place: str
    num_items: int
    num_queries: int
    notes: tuple[str, ...] = ()


def check_folder(path: str | Path) -> Path:
    """Return ``path`` if a new folder may be written there.

    Raises:
        ExportError: Something is there already, or its parent folder does not exist or is not writable.
        ConfigError: See ``check_new_name``.
    """
    check_new_name(path)
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ExportError(
            f"{argument('out')} must be new, got {str(path)!r}, which is there; "
            "remove it, or name another folder."
        )
    check_folder_of(path, ExportError)
    return path


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write into, which becomes ``path`` where nothing fails.

    Raises:
        ExportError: See ``check_folder``; or a file cannot be written, for want of room, say.
    """
    path = check_folder(path)
    try:
        with writing(path) as new:
            new.mkdir()
            yield new
            new.rename(path)
    except (OSError, PolarsError) as error:
        raise ExportError(
            f"{str(path)!r} could not be written: {reason_of(error)}; nothing was left behind."
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def write_json(file: Path, value: Any) -> None:
    """Write a JSON document, in ASCII: it is read right whatever a reader takes for its encoding."""
    file.write_text(json.dumps(value), encoding="ascii", newline="\n")


def json_value(value: Any, *, nul: str = "\0") -> Any:
    """Return a value as JSON has it: no number is NaN or infinite, and what JSON lacks is text.

    Args:
        value: A cell of a table.
        nul: What stands in the place of NUL.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {json_value(key, nul=nul): json_value(v, nul=nul) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(v, nul=nul) for v in value]
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text.replace("\0", nul)
