"""A table of any size, read by blocks of rows."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob, has_magic
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

_MAGIC = b"PAR1"
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
    place = Path(path)
    if place.is_file():
        with suppress(OSError):  # read_table says why it cannot be read
            return _is_parquet(place)
    return place.is_dir() or has_magic(str(path))


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
        self._files, self._has_hive = _files_of(path, what), not Path(path).is_file()
        for file in self._files:
            with self._reading():
                if not _is_parquet(file):
                    raise DataError(
                        f"{what} must be Parquet, got another format in {str(file)!r}; convert it, or read "
                        "it with `twotower.data.read_table` and pass the frame."
                    )
        with self._reading():
            lengths = [_length_of(file) for file in self._files]
            schema = self._scan(self._files).collect_schema()
        parts = {part.partition("=")[0] for file in self._files for part in file.parent.parts}
        # Of the files of one block alone, polars could infer another type.
        self._hive = {name: dtype for name, dtype in schema.items() if name in parts}
        self._starts = np.array([0, *accumulate(lengths)])
        self.columns = schema.names()
        self.num_rows = int(self._starts[-1])

    def read(self, rows: range, columns: Sequence[str]) -> pl.DataFrame:
        first = int(np.searchsorted(self._starts, rows.start, side="right")) - 1
        last = int(np.searchsorted(self._starts, rows.stop, side="left"))
        scan = self._scan(self._files[first:last], self._hive)
        with self._reading():
            block = (
                scan.select(columns).slice(rows.start - self._starts[first], len(rows)).collect()
            )
        if len(block) != len(rows):
            raise DataError(
                f"{self._what} must not change while it is read; run the command again."
            )
        return block

    def digest(self) -> str:
        folder = Path(os.path.commonpath([file.parent for file in self._files]))
        found = hashlib.sha256()
        with self._reading():
            for file in self._files:
                about = file.stat()
                line = (file.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns)
                found.update(repr(line).encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def _scan(self, files: list[Path], hive: dict[str, pl.DataType] | None = None) -> pl.LazyFrame:
        return pl.scan_parquet(
            files,
            glob=False,
            hive_partitioning=self._has_hive,
            hive_schema=hive or None,
            extra_columns="ignore",
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (PolarsError, PanicException, OSError) as error:
            raise DataError(
                f"{self._what} must be whole Parquet files with the same columns, got "
                f"{reason_of(error)!r}; check them."
            ) from error


def _files_of(path: str | Path, what: str) -> list[Path]:
    """Return the files that a path names, in the order in which their rows count.

    Raises:
        DataError: There are none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [
            file
            for file in place.rglob("*.parquet")
            if file.is_file() and not any(p[0] in "_." for p in file.relative_to(place).parts)
        ]
        rule = "a folder with Parquet files"
    else:
        names = glob(str(place), recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = [Path(name) for name in names if Path(name).is_file()]
        rule = "a file, a folder or a pattern of Parquet files"
    if not found:
        raise DataError(f"{what} must be {rule}, got {str(path)!r}, where there is none.")
    return sorted(found)


def _is_parquet(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _length_of(file: Path) -> int:
    return int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())
