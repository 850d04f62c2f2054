"""What commands share: consoles, JSON, parsing of ids, writing of tables."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from twotower.abandoned import put, writing
from twotower.cli.options import Language
from twotower.errors import ConfigError, DataError, check_least
from twotower.paths import check_new_file, check_new_name, reason_of

if TYPE_CHECKING:
    import polars as pl

    from twotower.training.trained import Trained
    from twotower.updating.updated import Updated

_WRITERS = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson"}


def console(*, json_wanted: bool) -> Console:
    """Return where words for people go: beside the JSON, to the standard error."""
    return Console(stderr=json_wanted)


def say(screen: Console, *sentences: str) -> None:
    """Print sentences as they are: a title may hold what rich would take for markup."""
    for sentence in sentences:
        screen.print(sentence, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    from twotower.exports.folder import json_value

    sys.stdout.write(json.dumps(json_value(value), indent=2, ensure_ascii=False) + "\n")


def cutoffs(text: str) -> tuple[int, ...]:
    """Return the numbers of ``10,20,100``.

    Raises:
        ConfigError: Something else stands there, a number below 1, or a number twice.
    """
    try:
        ks = tuple(int(piece) for piece in text.split(","))
    except ValueError as error:
        raise ConfigError(f"-k must be whole numbers with commas between, got {text!r}.") from error
    check_least(1, k=min(ks))
    if len(set(ks)) != len(ks):
        raise ConfigError(f"-k must name each cut-off once, got {text!r}.")
    return ks


def report_path(bundle: Path) -> Path:
    """Return where a bundle's report stands unless another place is named: beside it."""
    bundle = bundle if bundle.name not in ("", "..") else bundle.resolve()
    return bundle.with_name(f"{bundle.name}.report.html")


def refused_path(bundle: Path) -> Path:
    """Return where the report of an update stands whose bundle was not written."""
    return report_path(bundle).with_name(f"{bundle.resolve().name}.refused.html")


def check_report_beside(bundle: Path) -> None:
    """Refuse a bundle whose report would have no place, before the work and not after it.

    Raises:
        ConfigError: A folder is there, or the bundle has no proper name.
    """
    check_new_name(bundle)
    page = report_path(bundle)
    if page.is_dir():
        raise ConfigError(
            f"--out must leave room for its report {page.name!r}, got a folder there; choose another name."
        )


def write_report_beside(
    bundle: Path,
    page: Path,
    trained: "Trained | Updated",
    language: Language,
    screen: Console,
    *,
    name: str = "Its report",
) -> None:
    """Write the report of a finished bundle, and say where it is.

    Args:
        bundle: Where the bundle is.
        page: Where the report is to be.
        trained: Its model.
        language: Of the report.
        screen: Where to say so.
        name: What the report is called there.

    Raises:
        ConfigError: It cannot be written, on a full disk, say; the bundle is complete all the same.
    """
    try:
        trained.report(page, language=language)
    except ConfigError as error:
        raise ConfigError(
            f"{str(error).rstrip('.')}; the bundle {str(bundle)!r} is complete: make room, then write its "
            f"report with `twotower report {quote(str(bundle))}`."
        ) from error
    say(screen, f"{name} is at {page}.")


def print_limits(screen: Console) -> None:
    """Print what a private bundle cannot answer."""
    from twotower.training.private import LIMITS

    say(screen, "The bundle is private:", *(f"  - {limit}" for limit in LIMITS))


def ids(text: str) -> list[int | str]:
    """Return the ids of ``1,2,3``; integers and strings of digits are the same to a vocabulary."""
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def check_table_path(path: Path) -> None:
    """Refuse a file that ``write_tables`` could not write, before the work and not after it.

    Raises:
        ConfigError: The ending is none that is known, or see ``check_new_file``.
    """
    if path.suffix not in _WRITERS:
        raise ConfigError(f"--out must end in {', '.join(_WRITERS)}, got {str(path)!r}.")
    check_new_file(path)


def write_tables(tables: "Mapping[Path, pl.DataFrame]") -> None:
    """Write tables to the files that name their formats: all of them, or none.

    Raises:
        DataError: A file cannot be written, for want of room, say.
    """
    from polars.exceptions import PolarsError

    try:
        with ExitStack() as stack:
            written: dict[Path, Path] = {}
            for path, table in tables.items():
                written[path] = stack.enter_context(writing(path))
                with written[path].open("wb") as file:
                    getattr(table, _WRITERS[path.suffix])(file)
            for path, new in written.items():
                put(new, path)
    except (OSError, PolarsError) as error:
        raise DataError(
            f"--out must be writable, got {reason_of(error)!r} for {str(path)!r}; nothing was written."
        ) from error
