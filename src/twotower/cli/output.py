"""What commands share: consoles, JSON, parsing of ids, writing of tables."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from twotower.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

_WRITERS = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson"}


def console(*, json_wanted: bool) -> Console:
    """Return where words for people go: beside the JSON, to the standard error."""
    return Console(stderr=json_wanted)


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n")


def cutoffs(text: str) -> tuple[int, ...]:
    """Return the numbers of ``10,20,100``.

    Raises:
        ConfigError: Something else stands there, a number below 1, or a number twice.
    """
    try:
        ks = tuple(int(piece) for piece in text.split(","))
    except ValueError as error:
        raise ConfigError(f"-k must be whole numbers with commas between, got {text!r}.") from error
    if min(ks) < 1:
        raise ConfigError(f"-k must be at least 1, got {min(ks)}.")
    if len(set(ks)) != len(ks):
        raise ConfigError(f"-k must name each cut-off once, got {text!r}.")
    return ks


def report_path(bundle: Path) -> Path:
    """Return where a bundle's report stands unless another place is named: beside it."""
    bundle = bundle if bundle.name not in ("", "..") else bundle.resolve()
    return bundle.with_name(f"{bundle.name}.report.html")


def print_limits(screen: Console) -> None:
    """Print what a private bundle cannot answer."""
    from twotower.training.private import LIMITS

    screen.print("The bundle is private:")
    for limit in LIMITS:
        screen.print(f"  - {limit}", highlight=False, markup=False, soft_wrap=True)


def ids(text: str) -> list[int | str]:
    """Return the ids of ``1,2,3``; integers and strings of digits are the same to a vocabulary."""
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def check_table_path(path: Path) -> None:
    """Refuse a file that ``write_tables`` could not write, before the work and not after it.

    Raises:
        ConfigError: The ending is none that is known, the folder does not exist, or it is a folder.
    """
    if path.suffix not in _WRITERS:
        raise ConfigError(f"--out must end in {', '.join(_WRITERS)}, got {str(path)!r}.")
    if path.is_dir():
        raise ConfigError(f"--out must be a file, got the folder {str(path)!r}; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"--out must be in a folder that exists, got {str(path)!r}; make it first."
        )


def write_tables(tables: "Mapping[Path, pl.DataFrame]") -> None:
    """Write tables to the files that name their formats: all of them, or none.

    Raises:
        DataError: A file cannot be written, for want of room, say.
    """
    from polars.exceptions import PolarsError

    temporaries = {path: path.with_name(f".{path.name}.writing") for path in tables}
    try:
        for path, table in tables.items():
            with temporaries[path].open("wb") as file:
                getattr(table, _WRITERS[path.suffix])(file)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except (OSError, PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "No space left" in str(error):
            reason = "the disk is full"
        raise DataError(
            f"--out must be writable, got {reason.lower()!r} for {str(path)!r}; nothing was written."
        ) from error
    finally:
        for temporary in temporaries.values():
            if temporary.is_file():
                temporary.unlink()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
