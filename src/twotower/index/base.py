"""The contract of every index: the ``k`` best items of each query vector, by dot product."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from twotower.histories import Histories


class Found(NamedTuple):
    """The best items of each query, best first.

    Args:
        item_rows: ``(Q, k)`` int32, ``PADDING_ROW`` where fewer than ``k`` items exist.
        scores: ``(Q, k)`` float32, ``-inf`` where padded.
    """

    item_rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


class Index(Protocol):
    """Finds items by their vectors."""

    def search(
        self,
        query_vectors: torch.Tensor,
        k: int,
        *,
        exclude: Histories | None = None,
        allowed: npt.NDArray[np.bool_] | None = None,
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
