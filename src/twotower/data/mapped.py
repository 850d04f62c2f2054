"""Columns as files that are mapped into memory, so that the system reads and frees them as it needs."""

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from twotower.arrays import Bools, Ints
from twotower.errors import DataError
from twotower.paths import reason_of

BLOCK_VALUES = 1 << 22
"""Values that are in memory at a time."""


MAPPED_FROM = 1 << 24
"""From this many values on, columns that were on disk stay there. Fewer are read into memory, where events
are shuffled as those of a table are: the same events then give the same model."""


def blocks(num: int, first: int = 0) -> Iterator[slice]:
    """Yield the places of ``num`` values, from ``first`` on, in blocks."""
    for start in range(first, num, BLOCK_VALUES):
        yield slice(start, min(start + BLOCK_VALUES, num))


def where(column: npt.NDArray[Any], mask: Bools, num: int) -> npt.NDArray[Any]:
    """Return the values of a mapped column where ``mask`` holds, mapped as well.

    Args:
        column: ``(n,)``, as ``numpy.load`` or this module mapped it.
        mask: ``(n,)``.
        num: How many values those are, at least 1.

    Raises:
        DataError: There is no room for the file.
    """
    kept = (column[places][mask[places]] for places in blocks(len(column)))
    return _written(kept, column, num)


def in_order(column: npt.NDArray[Any], order: Ints) -> npt.NDArray[Any]:
    """Return ``column[order]``, mapped if the column is.

    Args:
        column: ``(n,)``.
        order: ``(m,)`` places in the column, at least 1.

    Raises:
        DataError: There is no room for the file.
    """
    if not is_mapped(column):
        return column[order]
    return _written((column[order[places]] for places in blocks(len(order))), column, len(order))


def _written(
    values: Iterator[npt.NDArray[Any]], column: npt.NDArray[Any], num: int
) -> npt.NDArray[Any]:
    """Return values as a mapped, unnamed file in the folder of the column they come from.

    The system frees the file with the last array that maps it.
    """
    name = getattr(column, "filename", None)
    folder = Path(tempfile.gettempdir()) if name is None else Path(name).parent
    try:
        with _unnamed(folder) as file:
            for block in values:
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            found = np.memmap(file, column.dtype, "r", shape=(num,))
    except OSError as error:
        raise DataError(
            f"the events must have room in '{folder}', got: {reason_of(error)}; free some space."
        ) from error
    found.filename = str(folder / "without a name")
    return found


def _unnamed(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return tempfile.TemporaryFile()  # it is somebody else's, to be read alone, or gone


def is_mapped(column: object) -> bool:
    """Return whether a column is read from a file as it is needed."""
    return isinstance(column, np.memmap)


class ColumnFile:
    """A column in the format of ``numpy.save`` that is written block by block.

    It is written, not mapped: where the disk is full, writing raises, and a map would end the process.

    Args:
        path: A new file.
        dtype: Of the column.
        num: Values that will be appended.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, num: int) -> None:
        self.dtype, self.left = np.dtype(dtype), num
        self.file = path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (num,),
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write the next values: ``(n,)``."""
        self.left -= len(values)
        self.file.write(np.ascontiguousarray(values, self.dtype).data)

    def __enter__(self) -> "ColumnFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        assert kind is not None or not self.left, f"{self.left} values are missing from the column"
