"""The contract of every index: the ``k`` best items of each query vector, by dot product."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Bools, Float32s, Rows
from twotower.errors import ArgumentError, check_least
from twotower.histories import Histories
from twotower.vocab import PADDING_ROW

Vectors = Tensor | Float32s
"""Vectors as a caller has them: a tensor, or a NumPy array."""


Mask = Bools
"""``(num_item_rows,)`` bool, the rows that an answer may hold."""


class Found(NamedTuple):
    """The best items of each query, best first.

    Args:
        item_rows: ``(Q, k)`` int32 row numbers of the indexed vectors. Where fewer than ``k`` items
            exist: 0 if the index has reserved rows, otherwise -1.
        scores: ``(Q, k)`` float32, ``-inf`` where padded.
    """

    item_rows: Rows
    scores: Float32s


def filler_of(reserved_rows: int) -> int:
    """Return the row number that fills ``Found.item_rows`` where no item is left."""
    return PADDING_ROW if reserved_rows else -1


def nothing_found(num_queries: int, k: int, reserved_rows: int) -> Found:
    """Return an answer without any item: ``(num_queries, k)`` rows and scores."""
    shape = (num_queries, k)
    rows = np.full(shape, filler_of(reserved_rows), np.int32)
    return Found(rows, np.full(shape, -np.inf, np.float32))


@lru_cache(maxsize=128)
def _nothing_excluded(num_queries: int) -> Histories:
    return Histories.empty(num_queries)


class Index(ABC):
    """Finds items by their vectors: checks what it is asked, and answers."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of rows, the reserved ones included, and width of the vectors."""

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
        queries = torch.as_tensor(query_vectors)
        if k < 1:
            check_least(1, k=k)
        (num_rows, dim), shape = self.shape, queries.shape
        if len(shape) != 2 or shape[1] != dim:
            raise ArgumentError(f"query_vectors must have shape (Q, {dim}), got {tuple(shape)}.")
        num_queries = shape[0]
        if exclude is None:
            exclude = _nothing_excluded(num_queries)
        elif len(exclude) != num_queries:
            raise ArgumentError(f"exclude must hold {num_queries} sets, got {len(exclude)}.")
        if allowed is not None and allowed.shape != (num_rows,):
            raise ArgumentError(f"allowed must have shape ({num_rows},), got {allowed.shape}.")
        return self._answer(queries, k, exclude, allowed)

    @abstractmethod
    def _answer(self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None) -> Found:
        """Return what ``search`` does for arguments that were checked."""
