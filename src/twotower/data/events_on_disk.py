"""Columns of events as files that are mapped into memory: written whole or block by block, and opened."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.dataset import Interactions
from twotower.histories import Histories


def save_events(events: Interactions, folder: Path) -> None:
    """Write each column as a file that ``open_events`` maps without reading it."""
    folder.mkdir(parents=True, exist_ok=False)
    columns = {**vars(events), "impressions": None}
    if events.impressions is not None:
        columns["impressions.offsets"] = events.impressions.offsets
        columns["impressions.item_rows"] = events.impressions.item_rows
    for name, column in columns.items():
        if column is not None:
            np.save(folder / f"{name}.npy", column)


def open_events(folder: Path) -> Interactions:
    """Return events whose columns stay on disk and are mapped into memory as they are read."""
    columns = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
    offsets = columns.pop("impressions.offsets", None)
    if offsets is None:
        return Interactions(**columns)
    shown = Histories(offsets, columns.pop("impressions.item_rows"))
    return Interactions(**columns, impressions=shown)


def in_memory(events: Interactions) -> Interactions:
    """Return events that were mapped with their columns in memory."""
    columns: dict[str, Any] = {
        name: np.array(column) if isinstance(column, np.memmap) else column
        for name, column in vars(events).items()
    }
    return Interactions(**columns)


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

    def close(self) -> None:
        """End the file.

        Raises:
            ValueError: Another number of values was appended than was said.
        """
        self.file.close()
        if self.left:
            raise ValueError(f"{self.left} values are missing from the column.")
