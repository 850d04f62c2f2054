"""Exact search: every item is scored."""

import numpy as np
import numpy.typing as npt
import torch

from twotower.features.histories import Histories
from twotower.index.base import Found
from twotower.index.topk import top_columns
from twotower.vocab import FIRST_ROW, PADDING_ROW

_CHUNK_SCORES = 2**24  # float32 scores held at once: 64 MB


class ExactIndex:
    """Scores the whole catalogue for each query; satisfies ``Index``.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32; the reserved rows are never found.
    """

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
            raise ValueError(f"k must be at least 1, got {k}.")
        (num_rows, dim), num_queries = self.item_vectors.shape, len(query_vectors)
        if query_vectors.shape != (num_queries, dim):
            raise ValueError(
                f"query_vectors must have shape (Q, {dim}), got {tuple(query_vectors.shape)}."
            )
        if exclude is not None and len(exclude) != num_queries:
            raise ValueError(f"exclude must hold {num_queries} sets, got {len(exclude)}.")
        if allowed is not None and allowed.shape != (num_rows,):
            raise ValueError(f"allowed must have shape ({num_rows},), got {allowed.shape}.")

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
