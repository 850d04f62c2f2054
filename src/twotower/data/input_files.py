"""Tables of many files, read whole or by blocks of rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from twotower.data.tables import Table, plain_types, read_table, reading
from twotower.errors import DataError
from twotower.table_files import TableFile, address_of, is_of_many, table_files, types_of_keys

BLOCK_CELLS = 1 << 24
"""Most cells of a block: what is held in memory at a time."""
BLOCK_BYTES = 1 << 29
"""Most bytes of a block, about, by those of the first rows of its file."""
_FIRST_ROWS = 10_000
MANIFEST, SCHEMA = "manifest.json", "schema.parquet"
"""The files that make a folder a prepared one."""


def blocks_of(
    file: TableFile,
    types: dict[str, pl.DataType],
    *,
    start: int = 0,
    what: str = "interactions",
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the rows of a file in order, each block with the number of rows before it.

    Parquet is read by blocks, and any other file whole.

    Args:
        file: The file.
        types: Of its keys.
        start: The first block that is wanted, from 0.
        what: Names the table in messages.

    Raises:
        DataError: The file cannot be read.
    """
    subject, path = f"{what} {file.path!r}", None if file.is_remote else Path(file.path)
    with reading(subject, path):
        is_parquet = file.is_parquet
    if not is_parquet:
        frame = read_table(file.path, what=what)
        size = block_rows(frame.head(_FIRST_ROWS))
        for place in range(start * size, len(frame), size):
            yield place, file.with_keys(frame.slice(place, size), types)
        return
    with reading(subject, path):
        scan = file.scan()
        num = int(scan.select(pl.len()).collect().item())
        size = block_rows(scan.head(_FIRST_ROWS).collect())
    for place in range(start * size, num, size):
        with reading(subject, path):
            frame = plain_types(scan.slice(place, size).collect())
        yield place, file.with_keys(frame, types)


def digest_of(file: TableFile, what: str = "interactions") -> str:
    """Return the SHA-256 of what a file holds, in hexadecimal.

    Raises:
        DataError: It cannot be read.
    """
    if not file.is_remote:
        path = Path(file.path)
        with reading(f"{what} {file.path!r}", path), path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    found = hashlib.sha256()
    for _, frame in blocks_of(file, {}, what=what):
        bytes_of = frame.write_ipc_stream(None, compat_level=pl.CompatLevel.oldest())
        found.update(bytes_of.getbuffer())
    return found.hexdigest()


def block_rows(first: pl.DataFrame) -> int:
    """Return how many rows of a file are read at a time, by its first rows."""
    by_cells = BLOCK_CELLS // max(first.width, 4)
    bytes_a_row = first.estimated_size() / max(1, len(first))
    return max(1, min(by_cells, int(BLOCK_BYTES / max(1.0, bytes_a_row))))


def files_of(source: str | Path, *, what: str = "interactions") -> tuple[TableFile, ...]:
    """Return the files that a path names; see ``table_files``.

    Raises:
        DataError: There is none, or an object store does not answer.
    """
    if is_prepared(source):
        advice = (
            "pass the files that it was made of"
            if what == "interactions"
            else "give it as interactions, alone"
        )
        raise DataError(f"{what} must be a table, got the prepared folder '{source}'; {advice}.")
    with reading(f"{what} {address_of(source)!r}", None):
        return table_files(source, what=what)


def is_prepared(source: object) -> bool:
    """Return whether a path is that of a folder that ``twotower prepare`` wrote."""
    if not isinstance(source, str | Path):
        return False
    try:
        folder = Path(source).expanduser()
        return (folder / MANIFEST).is_file() and (folder / SCHEMA).is_file()
    except (OSError, ValueError):
        return False


def read_files(source: Table, *, what: str = "interactions") -> pl.DataFrame:
    """Return the table that one file or many hold, whole; see ``read_table`` and ``table_files``.

    Raises:
        DataError: A file cannot be read, or has other columns than the first.
    """
    if not isinstance(source, str | Path) or not is_of_many(source):
        return read_table(source, what=what)
    files = files_of(source, what=what)
    types = types_of_keys(files)
    found: list[tuple[TableFile, pl.DataFrame]] = []
    for file in files:
        found += [(file, frame) for _, frame in blocks_of(file, types, what=what)]
    if not any(len(frame) for _, frame in found):
        raise DataError(f"{what} '{source}' must hold rows, got files without any.")
    schema = schema_of(frame for _, frame in found)
    return pl.concat(check_columns(frame, schema, file.path) for file, frame in found)


def schema_of(frames: Iterable[pl.DataFrame]) -> pl.Schema:
    """Return the columns of the first frame, each with the type of the first that holds a value of it.

    Floats and integers become those of 64 bits.
    """
    first, *others = frames
    types = {}
    for name, dtype in first.schema.items():
        for frame in (first, *others):
            if name in frame.columns and frame[name].null_count() < len(frame):
                dtype = frame.schema[name]
                break
        is_wide = dtype.is_float() or (dtype.is_integer() and dtype != pl.UInt64)
        types[name] = (pl.Float64() if dtype.is_float() else pl.Int64()) if is_wide else dtype
    return pl.Schema(types)


def check_columns(frame: pl.DataFrame, first: pl.Schema, path: str) -> pl.DataFrame:
    """Return the rows of a file with the columns of the first file, in their order and of their types.

    Numbers and moments may have another width, where no value changes by it.

    Raises:
        DataError: A column is missing, is more, or has another type.
    """
    if set(frame.columns) != set(first):
        missing = [name for name in first if name not in frame.columns]
        more = [name for name in frame.columns if name not in first]
        said = [f"no {_listed(missing)}"] if missing else []
        said += [f"also {_listed(more)}"] if more else []
        raise DataError(
            f"{path!r} must have the columns of the first file, {_listed(list(first))}, got "
            f"{' and '.join(said)}; write all files alike."
        )
    columns = []
    for name, wanted in first.items():
        column = frame[name]
        if column.dtype != wanted:
            cast = _cast(column, wanted)
            if cast is None:
                raise DataError(
                    f"{path!r} must have the types of the first file, got {column.dtype} in {name!r} "
                    f"instead of {wanted}; write the column alike in all files."
                )
            column = cast
        columns.append(column)
    return pl.DataFrame(columns)


def _cast(column: pl.Series, wanted: pl.DataType) -> pl.Series | None:
    """Return a column in another type, or None where that would change a value."""
    if column.null_count() == len(column):  # of nothing the type says nothing
        return pl.Series(column.name, [None], wanted).new_from_index(0, len(column))
    are_moments = column.dtype.base_type() == wanted.base_type() == pl.Datetime
    if not (are_moments or (column.dtype.is_numeric() and wanted.is_numeric())):
        return None
    cast = column.cast(wanted, strict=False)
    return cast if cast.cast(column.dtype, strict=False).equals(column) else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
