"""Tables of many files, read whole or by blocks of rows."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from twotower.data.tables import Table, plain_types, read_table, reading
from twotower.errors import DataError
from twotower.table_files import TableFile, address_of, is_of_many, table_files, types_of_keys

BLOCK_CELLS = 1 << 24
"""Cells of a block: what is held in memory at a time."""


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
        size = block_rows(frame.width)
        for place in range(start * size, len(frame), size):
            yield place, file.with_keys(frame.slice(place, size), types)
        return
    with reading(subject, path):
        scan = file.scan()
        num = int(scan.select(pl.len()).collect().item())
        size = block_rows(len(scan.collect_schema()))
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


def block_rows(num_columns: int) -> int:
    """Return how many rows of a table are read at a time."""
    return max(1, BLOCK_CELLS // max(num_columns, 4))


def files_of(source: str | Path, *, what: str = "interactions") -> tuple[TableFile, ...]:
    """Return the files that a path names; see ``table_files``.

    Raises:
        DataError: There is none, or an object store does not answer.
    """
    with reading(f"{what} {address_of(source)!r}", None):
        return table_files(source, what=what)


def read_files(source: Table, *, what: str = "interactions") -> pl.DataFrame:
    """Return the table that one file or many hold, whole; see ``read_table`` and ``table_files``.

    Raises:
        DataError: A file cannot be read, or has other columns than the first.
    """
    if not isinstance(source, str | Path) or not is_of_many(source):
        return read_table(source, what=what)
    files = files_of(source, what=what)
    types = types_of_keys(files)
    found: list[pl.DataFrame] = []
    for file in files:
        for _, frame in blocks_of(file, types, what=what):
            found.append(check_columns(frame, found[0].schema, file.path) if found else frame)
    if not sum(map(len, found)):
        raise DataError(f"{what} '{source}' must hold rows, got files without any.")
    return pl.concat(found)


def check_columns(frame: pl.DataFrame, first: pl.Schema, path: str) -> pl.DataFrame:
    """Return the rows of a file with the columns of the first file, in their order and of their types.

    Integers may have another width, and so may floats.

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
    casts = []
    for name, wanted in first.items():
        dtype = frame.schema[name]
        if dtype == wanted:
            continue
        is_alike = (
            (dtype.is_integer() and wanted.is_integer())
            or (dtype.is_float() and wanted.is_float())
            or dtype == pl.Null
        )
        if not is_alike:
            raise DataError(
                f"{path!r} must have the types of the first file, got {dtype} in {name!r} instead of "
                f"{wanted}; write the column alike in all files."
            )
        casts.append(pl.col(name).cast(wanted))
    return frame.select(first.names()).with_columns(casts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
