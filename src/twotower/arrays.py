"""Short names of the arrays' types, and their distinct values."""

from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.int32]
"""Rows of a vocabulary, and other numbers that need no more than 32 bits."""
Floats: TypeAlias = npt.NDArray[np.float64]
Float32s: TypeAlias = npt.NDArray[np.float32]

Values = TypeVar("Values", bound=np.generic)


def distinct(values: npt.NDArray[Values]) -> npt.NDArray[Values]:
    """Return the distinct values of a flat array, ascending.

    ``np.unique`` hashes whole numbers since numpy 2.3. Where most are distinct, as rows and pairs of rows
    are, that takes twenty times as long as to sort them (measured: 14 s and 0.6 s for 10 million).
    """
    ordered = np.sort(values)
    is_first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered[is_first]
