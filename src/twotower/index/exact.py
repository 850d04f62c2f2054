"""Exact search: every item is scored, or every item that may be an answer where these are few."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from twotower.errors import ArgumentError
from twotower.histories import Histories
from twotower.index.base import Found
from twotower.index.topk import top_columns
from twotower.vocab import FIRST_ROW, PADDING_ROW

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


class ExactIndex:
    """Scores the whole catalogue for each query; satisfies ``Index``.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32; the reserved rows are never found.
    """

    scores_items_alone = True
    """Whether an item's score depends on no other item, so that few can be scored without the rest."""

    cost_of_a_row = 1.0
    """What it takes to score a row of the catalogue, by what it takes as a row of a float32 product."""

    def __init__(self, item_vectors: torch.Tensor) -> None:
        self.item_vectors = item_vectors

    def search(
        self,
        query_vectors: torch.Tensor,
        k: int,
        *,
        exclude: Histories | None = None,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> Found:
        """Return the ``k`` items of largest dot product; see ``Index.search``."""
        self._check(query_vectors, k, exclude, allowed)
        if allowed is not None:
            rows_allowed = np.flatnonzero(allowed[FIRST_ROW:]) + FIRST_ROW
            if self._is_few(len(rows_allowed), len(query_vectors)):
                return self._search_few(query_vectors, k, exclude, rows_allowed)
        return self._search_all(query_vectors, k, exclude, allowed)

    def _is_few(self, num_allowed: int, num_queries: int) -> bool:
        """Return whether the allowed rows are so few that a copy of them is searched more quickly."""
        num_rows, dim = self.item_vectors.shape
        masked = num_rows * (num_queries + _MASKING) * self.cost_of_a_row
        gathered = num_allowed * (num_queries + _GATHERING)
        fits = num_allowed * dim <= _CHUNK_SCORES  # no more memory than for the scores
        return self.scores_items_alone and fits and gathered < masked

    def _search_all(
        self,
        query_vectors: torch.Tensor,
        k: int,
        exclude: Histories | None,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Found:
        num_rows, num_queries = len(self.item_vectors), len(query_vectors)
        rows = np.full((num_queries, k), PADDING_ROW, np.int32)
        best = np.full((num_queries, k), -np.inf, np.float32)
        size = max(1, _CHUNK_SCORES // num_rows)
        for start in range(0, num_queries, size):
            here = slice(start, min(start + size, num_queries))
            found = best_of_scores(
                self._scores(query_vectors, here),
                k,
                None if exclude is None else exclude.take(here),
                allowed,
            )
            rows[here], best[here] = found
        return Found(rows, best)

    def _check(
        self,
        query_vectors: torch.Tensor,
        k: int,
        exclude: Histories | None,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> None:
        if k < 1:
            raise ArgumentError(f"k must be at least 1, got {k}.")
        (num_rows, dim), num_queries = self.item_vectors.shape, len(query_vectors)
        if query_vectors.shape != (num_queries, dim):
            raise ArgumentError(
                f"query_vectors must have shape (Q, {dim}), got {tuple(query_vectors.shape)}."
            )
        if exclude is not None and len(exclude) != num_queries:
            raise ArgumentError(f"exclude must hold {num_queries} sets, got {len(exclude)}.")
        if allowed is not None and allowed.shape != (num_rows,):
            raise ArgumentError(f"allowed must have shape ({num_rows},), got {allowed.shape}.")

    def _search_few(
        self,
        query_vectors: torch.Tensor,
        k: int,
        exclude: Histories | None,
        rows_allowed: npt.NDArray[np.int64],
    ) -> Found:
        """Return the answer of an index that holds the reserved rows and ``rows_allowed`` alone."""
        known = np.concatenate([np.arange(FIRST_ROW), rows_allowed])
        filling = np.full(-len(known) % _LINES, PADDING_ROW)
        rows = np.concatenate([known, filling])
        if exclude is not None:
            places = np.minimum(np.searchsorted(known, exclude.item_rows), len(known) - 1)
            is_here = known[places] == exclude.item_rows
            # What is not here at all becomes a row that is never found.
            places = np.where(is_here, places, PADDING_ROW).astype(np.int32)
            exclude = replace(exclude, item_rows=places)
        few = ExactIndex(self.item_vectors[torch.from_numpy(rows).to(self.item_vectors.device)])
        found = few._search_all(query_vectors, k, exclude, np.arange(len(rows)) < len(known))
        return Found(rows[found.item_rows].astype(np.int32), found.scores)

    def _scores(self, query_vectors: torch.Tensor, here: slice) -> torch.Tensor:
        """Return the scores of the queries ``here``, ``(n, num_item_rows)``, which may be written to."""
        return query_vectors[here] @ self.item_vectors.T


def best_of_scores(
    scores: torch.Tensor,
    k: int,
    exclude: Histories | None,
    allowed: npt.NDArray[np.bool_] | None,
) -> Found:
    """Return the best of ``(Q, num_item_rows)`` scores, which are overwritten; see ``Index.search``."""
    num_queries, num_rows = scores.shape
    scores[:, :FIRST_ROW] = -torch.inf
    if allowed is not None:
        scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)
    if exclude is not None:
        owner = np.repeat(np.arange(num_queries), exclude.lengths)
        scores[
            torch.from_numpy(owner), torch.from_numpy(exclude.item_rows.astype(np.int64))
        ] = -torch.inf
    values, columns = top_columns(scores, min(k, num_rows))
    rows = np.full((num_queries, k), PADDING_ROW, np.int32)
    best = np.full((num_queries, k), -np.inf, np.float32)
    width = values.shape[1]
    rows[:, :width] = torch.where(values == -torch.inf, PADDING_ROW, columns).cpu().numpy()
    best[:, :width] = values.cpu().numpy()
    return Found(rows, best)
