"""Columns of events as files that are mapped into memory: written whole or block by block, and opened."""

from pathlib import Path
from typing import Any

import numpy as np

from twotower.data.dataset import Interactions


def save_events(events: Interactions, folder: Path) -> None:
    """Write each column as a file that ``open_events`` maps without reading it.

    Args:
        events: Without impressions, which no prepared folder has.
        folder: A new one.
    """
    assert events.impressions is None
    folder.mkdir(parents=True, exist_ok=False)
    for name, column in vars(events).items():
        if column is not None:
            np.save(folder / f"{name}.npy", column)


def open_events(folder: Path) -> Interactions:
    """Return events whose columns stay on disk and are mapped into memory as they are read."""
    return Interactions(
        **{path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    )


def in_memory(events: Interactions) -> Interactions:
    """Return events that were mapped with their columns in memory."""
    columns: dict[str, Any] = {
        name: np.array(column) if isinstance(column, np.memmap) else column
        for name, column in vars(events).items()
    }
    return Interactions(**columns)
