"""The result of an export: a new folder, written atomically, and a summary."""

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
    """Summary of an export.

    Args:
        place: The folder, or the name of the table or collection.
        num_items: Number of exported items.
        num_queries: Number of exported queries.
        notes: Sentences about the export for its reader.
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
    """Give a temporary folder to write into, which becomes ``path`` if nothing fails.

    Raises:
        ExportError: See ``check_folder``; or a file cannot be written, because the disk is full, say.
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
    """Write a JSON document in ASCII, so that readers with any default encoding read it correctly."""
    file.write_text(json.dumps(value), encoding="ascii", newline="\n")


def json_value(value: Any, *, nul: str = "\0") -> Any:
    """Convert a value for JSON: NaN and infinities become null, types that JSON lacks become text.

    Args:
        value: A cell of a table.
        nul: Replaces NUL.
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
