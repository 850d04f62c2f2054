"""Columns of events as files that are mapped into memory: written whole or block by block, and opened."""

from pathlib import Path
from typing import Any

import numpy as np

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
