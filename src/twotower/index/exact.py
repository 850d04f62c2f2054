"""Exact search: every item is scored, or every item that may be an answer where these are few."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Ints
from twotower.errors import ArgumentError, check_least
from twotower.histories import Histories
from twotower.index.base import Found, Index, Mask, Vectors, filler_of, nothing_found
from twotower.index.topk import best_of_scores
from twotower.vocab import PADDING_ROW

_CHUNK_SCORES = 2**24  # float32 scores held at once: 64 MB
_GATHERING, _MASKING = 60, 2
"""What is paid beside scoring, in queries: for each row that is gathered, and for each that is masked.

Measured on one thread with 200,000 items, 64 wide, none of them in the processor's caches: gathering the
allowed rows takes as long as scoring all and masking where a share of .05 is allowed for 1 query, .2 for 4,
above .6 for 16 and 64; in warm caches, and with items 16 to 128 wide, at .10 to .20, .20 to .45, .55 to .70
and .70 to 1. The rule says .05, .09, .24 and .53, so that it seldom loses.
"""
_LINES = 64
"""Gathered rows are filled up to a multiple of it: a product of matrices sums its last few lines in another
order, and twins among them would get scores that differ in the last bit."""


class ExactIndex(Index):
    """Scores the whole catalogue for each query.

    Every row of ``item_vectors`` can be found, and ``Found.item_rows`` are its row numbers. The library
    itself passes ``reserved_rows=FIRST_ROW``, since its tables begin with two rows that are no items.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32, a tensor or a NumPy array.
        reserved_rows: Number of leading rows that are never found. With at least one, row 0 fills the
            places of ``Found.item_rows`` that have no item; with none, -1 does.

    Raises:
        ValueError: ``item_vectors`` is not a matrix, or ``reserved_rows`` is below 0.

    Example:
        >>> index = ExactIndex(np.eye(3, dtype=np.float32))
        >>> index.search(np.array([[0.1, 0.9, 0.2]], np.float32), k=2).item_rows.tolist()
        [[1, 2]]
    """

    scores_items_alone = True
    """Whether an item's score depends on no other item, so that few can be scored without the rest."""

    cost_of_a_row = 1.0
    """What it takes to score a row of the catalogue, by what it takes as a row of a float32 product."""

    def __init__(self, item_vectors: Vectors, *, reserved_rows: int = 0) -> None:
        vectors = torch.as_tensor(item_vectors)
        if vectors.ndim != 2:
            raise ArgumentError(
                f"item_vectors must have shape (num_item_rows, dim), got {tuple(vectors.shape)}."
            )
        check_least(0, reserved_rows=reserved_rows)
        self.item_vectors = vectors
        self._shape = vectors.shape[0], vectors.shape[1]  # a tensor makes a new one each time
        self.reserved_rows = reserved_rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, the reserved ones included, and width of the vectors."""
        return self._shape

    def _answer(self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None) -> Found:
        if allowed is not None:
            rows_allowed = np.flatnonzero(allowed[self.reserved_rows :]) + self.reserved_rows
            if self._is_few(len(rows_allowed), len(queries)):
                return self._search_few(queries, k, exclude, rows_allowed)
        return self._search_all(queries, k, exclude, allowed)

    def _is_few(self, num_allowed: int, num_queries: int) -> bool:
        """Return whether the allowed rows are so few that a copy of them is searched more quickly."""
        num_rows, dim = self.item_vectors.shape
        masked = num_rows * (num_queries + _MASKING) * self.cost_of_a_row
        gathered = num_allowed * (num_queries + _GATHERING)
        fits = num_allowed * dim <= _CHUNK_SCORES  # no more memory than for the scores
        return self.scores_items_alone and fits and gathered < masked

    def _search_all(
        self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None
    ) -> Found:
        num_queries = len(queries)
        rows, best = nothing_found(num_queries, k, self.reserved_rows)
        size = max(1, _CHUNK_SCORES // max(1, len(self.item_vectors)))
        for start in range(0, num_queries, size):
            here = slice(start, min(start + size, num_queries))
            scores, sets = self._scores(queries, here), exclude.take(here)
            rows[here], best[here] = best_of_scores(
                scores, k, sets, allowed, reserved_rows=self.reserved_rows
            )
        return Found(rows, best)

    def _search_few(self, queries: Tensor, k: int, exclude: Histories, rows_allowed: Ints) -> Found:
        """Return the answer of an index that holds ``rows_allowed`` alone, after one reserved row."""
        known = np.concatenate([[PADDING_ROW], rows_allowed])
        filling = np.full(-len(known) % _LINES, PADDING_ROW)
        rows = np.concatenate([known, filling])
        nearest = np.searchsorted(known[1:], exclude.item_rows) + 1
        is_here = known[np.minimum(nearest, len(known) - 1)] == exclude.item_rows
        # What is not here at all becomes the row that is never found.
        places = np.where(is_here, nearest, PADDING_ROW).astype(np.int32)
        exclude = replace(exclude, item_rows=places)
        vectors = self.item_vectors[torch.from_numpy(rows).to(self.item_vectors.device)]
        few = ExactIndex(vectors, reserved_rows=1)
        found, scores = few._search_all(queries, k, exclude, np.arange(len(rows)) < len(known))
        own_rows = np.where(found == PADDING_ROW, filler_of(self.reserved_rows), rows[found])
        return Found(own_rows.astype(np.int32), scores)

    def _scores(self, query_vectors: Tensor, here: slice) -> Tensor:
        """Return new scores of the queries ``here``: ``(n, num_item_rows)``."""
        # What a retriever's ``encode_queries`` returns is on the CPU, wherever its index is.
        return query_vectors[here].to(self.item_vectors.device) @ self.item_vectors.T
