"""The values of a column of the items as numbers, to count by."""

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import ArgumentError
from twotower.index.filter_columns import ReadColumn
from twotower.vocab import FIRST_ROW


class ColumnValues:
    """Which values each item row has: none where it is missing, several of tags and lists.

    It grows as the catalogue does; a row that was read stays as it is.
    """

    def __init__(self) -> None:
        self._known: pl.Series | None = None
        self._offsets = np.zeros(FIRST_ROW + 1, np.int64)
        self._codes = np.zeros(0, np.int32)

    @property
    def num_rows(self) -> int:
        """Rows that were read, the reserved ones included."""
        return len(self._offsets) - 1

    def append(self, column: ReadColumn) -> None:
        """Read the lines of further rows.

        Args:
            column: One line a row, as a filter compares it.

        Raises:
            ValueError: Its values are lists of lists, or structures.
        """
        single, lines = column, np.arange(len(column.raw))
        if column.elements is not None:
            single, lines = column.elements.column, column.elements.lines
        if single.sort in ("list", "other"):
            raise ArgumentError(
                f"cap must name a column of single values, tags or lists of them, got {column.raw.name!r}, "
                f"which holds {column.raw.dtype}."
            )
        values = single.values
        is_there = values.is_not_null().to_numpy()
        lines = lines[is_there]
        if column.elements is not None:  # a tag that stands twice is one
            pairs = pl.DataFrame({"line": lines, "value": values.drop_nulls()})
            pairs = pairs.unique(maintain_order=True)
            lines, codes = pairs["line"].to_numpy(), self._codes_of(pairs["value"])
        else:
            codes = self._codes_of(values.drop_nulls())
        counts = np.bincount(lines, minlength=len(column.raw))
        ends = self._offsets[-1] + np.cumsum(counts)
        self._offsets = np.concatenate([self._offsets, ends])
        self._codes = np.concatenate([self._codes, codes])

    def of(self, row: int) -> list[int]:
        """Return the values of a row."""
        values: list[int] = self._codes[self._offsets[row] : self._offsets[row + 1]].tolist()
        return values

    def rows_with(self, values: list[int]) -> npt.NDArray[np.bool_]:
        """Return which rows have one of some values: ``(num_rows,)``."""
        is_one = np.zeros(int(self._codes.max(initial=-1)) + 1, np.bool_)
        is_one[values] = True
        before = np.concatenate([[0], np.cumsum(is_one[self._codes])])
        return np.asarray(before[self._offsets[1:]] > before[self._offsets[:-1]], np.bool_)

    def _codes_of(self, values: pl.Series) -> npt.NDArray[np.int32]:
        if not len(values):
            return np.zeros(0, np.int32)
        values = values.rename("value")
        seen = values if self._known is None else pl.concat([self._known, values])
        self._known = seen.unique(maintain_order=True)  # codes that were given stay
        table = pl.DataFrame({"value": self._known}).with_row_index("code")
        found = values.to_frame().join(table, on="value", how="left", maintain_order="left")
        return found["code"].to_numpy().astype(np.int32)
