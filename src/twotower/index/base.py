"""The contract of every index: the ``k`` best items of each query vector, by dot product."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from twotower.histories import Histories
from twotower.vocab import PADDING_ROW

Vectors = torch.Tensor | npt.NDArray[np.float32]
"""Vectors as a caller has them: a tensor, or a NumPy array."""


Mask = npt.NDArray[np.bool_]
"""``(num_item_rows,)`` bool, the rows that an answer may hold."""


class Found(NamedTuple):
    """The best items of each query, best first.

    Args:
        item_rows: ``(Q, k)`` int32 row numbers of the indexed vectors. Where fewer than ``k`` items
            exist: 0 if the index has reserved rows, otherwise -1.
        scores: ``(Q, k)`` float32, ``-inf`` where padded.
    """

    item_rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


def filler_of(reserved_rows: int) -> int:
    """Return the row number that fills ``Found.item_rows`` where no item is left."""
    return PADDING_ROW if reserved_rows else -1


def nothing_found(num_queries: int, k: int, reserved_rows: int) -> Found:
    """Return an answer without any item: ``(num_queries, k)`` rows and scores."""
    shape = (num_queries, k)
    rows = np.full(shape, filler_of(reserved_rows), np.int32)
    return Found(rows, np.full(shape, -np.inf, np.float32))


class Index(Protocol):
    """Finds items by their vectors."""

    def search(
        self,
        query_vectors: Vectors,
        k: int,
        *,
        exclude: Histories | None = None,
        allowed: Mask | None = None,
    ) -> Found:
        """Return the ``k`` items of largest dot product, equal ones by item row.

        Args:
            query_vectors: ``(Q, dim)`` float32.
            k: At least 1.
            exclude: ``Q`` sets of item rows that each query's answer must not hold.
            allowed: ``(num_item_rows,)`` bool, the rows that any answer may hold; None allows all.

        Raises:
            ValueError: ``k`` is below 1, or the shapes differ.
        """
        ...
