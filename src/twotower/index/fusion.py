"""Two rankings as one: by what texts mean, and by which words they share."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.arrays import Bools, Float32s
from twotower.errors import ArgumentError
from twotower.index.exact import ExactIndex
from twotower.index.lexical import LexicalIndex, Words
from twotower.vocab import FIRST_ROW

RANK_CONSTANT = 60
"""What is added to each rank before it is inverted, as in the paper."""


def convex(dense: Tensor, lexical: Tensor, weight: float | Tensor) -> Tensor:
    """Return ``(1 - weight) * n(dense) + weight * n(lexical)``, ``n`` from the least score to the largest.

    Lexical scores begin at 0, which is that of an item without a word of the query, so ``n(s) = s / max``;
    dense ones at the least of the line, ``n(s) = (s - min) / (max - min)``. ``-inf`` stays.

    Args:
        dense: ``(n, I)`` float.
        lexical: ``(n, I)`` float, none below 0.
        weight: In [0, 1]; or ``(n, 1)``, one a line.

    Returns:
        ``(n, I)`` float, in [0, 1] where it is finite.

    Raises:
        ValueError: ``weight`` is out of range, or the shapes differ.

    Source: Bruch, Gai and Ingber, TOIS 2023, section 4 (convex combinations with min-max normalisation,
        the lexical minimum taken from theory). Differs: over all items, not over the best of each list.
    """
    _check_shapes(dense, lexical)
    if not isinstance(weight, Tensor) and not 0 <= weight <= 1:
        raise ArgumentError(f"weight must be in [0, 1], got {weight}.")
    is_out = dense.isneginf()
    least = dense.masked_fill(is_out, torch.inf).amin(dim=1, keepdim=True)
    spread = (dense.amax(dim=1, keepdim=True) - least).clamp(min=1e-12)
    of_meaning = ((dense - least) / spread).masked_fill(is_out, -torch.inf)
    of_words = lexical / lexical.amax(dim=1, keepdim=True).clamp(min=1e-12)
    fused = (1 - weight) * of_meaning.masked_fill(is_out, 0.0) + weight * of_words
    return fused.masked_fill(is_out, -torch.inf)


def reciprocal_ranks(dense: Tensor, lexical: Tensor) -> Tensor:
    """Return the sum of ``1 / (60 + rank)`` over both, ranks from 1; items without a shared word get none.

    Args:
        dense: ``(n, I)`` float; ``-inf`` stays.
        lexical: ``(n, I)`` float, none below 0.

    Returns:
        ``(n, I)`` float32.

    Raises:
        ValueError: The shapes differ.

    Source: Cormack, Clarke and Buettcher, SIGIR 2009.
    """
    _check_shapes(dense, lexical)
    of_words = (1 / (RANK_CONSTANT + _ranks(lexical))).masked_fill(lexical <= 0, 0.0)
    return (1 / (RANK_CONSTANT + _ranks(dense)) + of_words).masked_fill(
        dense.isneginf(), -torch.inf
    )


class FusedIndex(ExactIndex):
    """Scores the whole catalogue by vectors and by words at once, as ``convex`` does.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32; the reserved rows are never found.
        lexical: Of the items' words.
        words: Those of the ``Q`` queries that are searched.
        weights: ``(Q,)`` of the lexical scores; see ``convex``.
    """

    scores_items_alone = False  # both scores are brought to [0, 1] over all items

    def __init__(
        self, item_vectors: Tensor, lexical: LexicalIndex, words: Words, weights: Tensor
    ) -> None:
        super().__init__(item_vectors, reserved_rows=FIRST_ROW)
        self.lexical = lexical
        self.words = words
        self.weights = weights

    def of(self, places: slice | npt.NDArray[np.integer]) -> "FusedIndex":
        """Return the same for the queries at some places."""
        which = np.arange(len(self.words))[places]
        words = tuple(self.words[place] for place in which.tolist())
        return FusedIndex(
            self.item_vectors, self.lexical, words, self.weights[torch.from_numpy(which)]
        )

    def deviations(self, query_vectors: Tensor, offered: Bools | None) -> Float32s:
        """Return the standard deviation of each query's scores over the items: ``(Q,)`` float32.

        Args:
            query_vectors: ``(Q, dim)`` float32.
            offered: ``(num_item_rows,)`` the rows that are items; None are all but the reserved ones.
        """
        is_item = np.ones(len(self.item_vectors), np.bool_) if offered is None else offered.copy()
        is_item[:FIRST_ROW] = False
        found = np.zeros(len(query_vectors), np.float32)
        for place in range(len(query_vectors) if is_item.any() else 0):
            scores = self._scores(query_vectors, slice(place, place + 1))[0].cpu().numpy()
            found[place] = scores[is_item].std()
        return found

    def _scores(self, query_vectors: Tensor, here: slice) -> Tensor:
        dense = super()._scores(query_vectors, here)
        dense[:, :FIRST_ROW] = -torch.inf  # they are no least score
        of_words = self.lexical.scores(self.words[here]).to(dense.device)
        return convex(dense, of_words, self.weights[here, None].to(dense.device))


def _ranks(scores: Tensor) -> Tensor:
    """Return each item's place, from 1; of equal scores the first is ahead."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).float()


def _check_shapes(dense: Tensor, lexical: Tensor) -> None:
    if dense.shape != lexical.shape:
        raise ArgumentError(
            f"scores must have one shape, got {tuple(dense.shape)} and {tuple(lexical.shape)}."
        )
