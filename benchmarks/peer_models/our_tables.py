"""The data as ``twotower.train`` takes them."""

from typing import Any

import numpy as np
import polars as pl
from peer import Data


def events(data: Data, mask: Any) -> pl.DataFrame:
    """Return a table of the masked events."""
    return pl.DataFrame(
        {"query": data.query[mask], "item": data.item[mask], "time": data.times[mask]}
    )


def table(side: str, features: Any) -> pl.DataFrame:
    """Return a table of ids and categories, which are words so that they read as such."""
    named = {f"{side}_{i}": [f"c{v}" for v in column] for i, column in enumerate(features.T)}
    return pl.DataFrame({side: np.arange(len(features), dtype=np.int32), **named})
