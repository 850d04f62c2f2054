"""A table of any size, read by blocks of rows."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from twotower.errors import DataError
from twotower.features.dataframes import Frame, as_polars, is_frame
from twotower.paths import reason_of
from twotower.table_files import TableFile, is_of_many, table_files, types_of_keys

_HASHED_ROWS = 65_536
Table = str | Path | Frame
"""A Parquet file, a folder of such, a pattern such as ``items/*.parquet``, or a frame."""


class Blocks(Protocol):
    """A table of which any run of rows can be read.

    Args:
        columns: Names of the columns.
        num_rows: Number of rows.
    """

    columns: list[str]
    num_rows: int

    def read(self, rows: range, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of a run of rows.

        Raises:
            DataError: They cannot be read.
        """
        ...

    def digest(self) -> str:
        """Return what tells this table from another one or from a changed one."""
        ...


def blocks_of(table: Table, what: str) -> Blocks:
    """Return a table that is read by blocks.

    Args:
        table: See ``Table``. Files of a folder are read in the order of their paths, also those of its
            folders, whose names may give columns as in ``country=DE``. Names that begin with ``_`` or ``.``
            are skipped.
        what: Names it in messages.

    Raises:
        DataError: There is no such file, one is not Parquet or damaged, or there is no row.
    """
    if is_frame(table):
        blocks: Blocks = _FrameBlocks(as_polars(table), what)
    elif isinstance(table, str | Path):
        blocks = _ParquetBlocks(table, what)
    else:
        raise DataError(
            f"{what} must be a path or a frame of polars, pandas or pyarrow, got {type(table).__name__}; "
            "pass one of these."
        )
    if not blocks.num_rows:
        raise DataError(f"{what} must hold rows, got a table without any.")
    return blocks


def is_read_by_blocks(path: str | Path) -> bool:
    """Return whether a path is for ``blocks_of``: a folder, a pattern, or a file of Parquet."""
    if is_of_many(path):
        return True
    with suppress(OSError):  # read_table says why it cannot be read
        return TableFile(str(path)).is_parquet
    return False


class _FrameBlocks:
    def __init__(self, frame: pl.DataFrame, what: str) -> None:
        mixed = [name for name, dtype in frame.schema.items() if dtype == pl.Object]
        if mixed:
            raise DataError(
                f"{what} must have one type in each column, got several in {mixed[0]!r}; convert it."
            )
        self._frame = frame
        self.columns = frame.columns
        self.num_rows = len(frame)

    def read(self, rows: range, columns: Sequence[str]) -> pl.DataFrame:
        return self._frame.select(columns).slice(rows.start, len(rows))

    def digest(self) -> str:
        found = hashlib.sha256()
        for start in range(0, self.num_rows, _HASHED_ROWS):
            buffer = BytesIO()
            self._frame.slice(start, _HASHED_ROWS).rechunk().write_ipc(buffer)
            found.update(buffer.getbuffer())
        return found.hexdigest()


class _ParquetBlocks:
    def __init__(self, path: str | Path, what: str) -> None:
        self._what = what
        with self._reading():
            self._files = table_files(path, what=what)
        for file in self._files:
            with self._reading():
                is_parquet = file.is_parquet
            if not is_parquet:
                raise DataError(
                    f"{what} must be Parquet, got another format in {file.path!r}; convert it, or read "
                    "it with `twotower.data.read_table` and pass the frame."
                )
        self._types = types_of_keys(self._files)
        with self._reading():
            scans = [file.scan() for file in self._files]
            lengths = [int(scan.select(pl.len()).collect().item()) for scan in scans]
            names = scans[0].collect_schema().names()
        self._starts = np.array([0, *accumulate(lengths)])
        self.columns = list(dict.fromkeys([*names, *self._types]))
        self.num_rows = int(self._starts[-1])

    def read(self, rows: range, columns: Sequence[str]) -> pl.DataFrame:
        first = int(np.searchsorted(self._starts, rows.start, side="right")) - 1
        last = int(np.searchsorted(self._starts, rows.stop, side="left"))
        found = []
        for place in range(first, last):
            start = max(rows.start, int(self._starts[place]))
            num = min(rows.stop, int(self._starts[place + 1])) - start
            in_file = [name for name in columns if name not in self._types]
            with self._reading():
                rows_of = (
                    self._files[place]
                    .scan()
                    .select(in_file)
                    .slice(start - self._starts[place], num)
                )
                frame = rows_of.collect() if in_file else pl.DataFrame(height=num)
            if len(frame) != num:
                raise DataError(
                    f"{self._what} must not change while it is read; run the command again."
                )
            found.append(self._files[place].with_keys(frame, self._types).select(columns))
        with self._reading():
            return pl.concat(found, how="vertical_relaxed")

    def digest(self) -> str:
        folder = os.path.commonpath([Path(file.path).parent for file in self._files])
        found = hashlib.sha256()
        with self._reading():
            for file in self._files:
                about = Path(file.path).stat()
                place = Path(file.path).relative_to(folder).as_posix()
                line = (place, about.st_size, about.st_mtime_ns)
                found.update(repr(line).encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (PolarsError, PanicException, OSError) as error:
            raise DataError(
                f"{self._what} must be whole Parquet files with the same columns, got "
                f"{reason_of(error)!r}; check them."
            ) from error
