"""The losses that look at all scores of a batch at once: one call, one set of refusals."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.checks import check_all_liked, check_shapes, check_temperature, completed
from twotower.losses.scores import Scores, score, weighted_mean


class DenseLoss(ABC):
    """A loss of each query by its own score and those of its negatives.

    Time and memory are ``O(B N)``; a subclass says what a query costs.
    """

    name: ClassVar[str]
    """In messages, as in ``loss.kind``."""
    takes_labels: ClassVar[bool] = False
    """Whether a pair labelled 0 has a meaning; otherwise it is refused."""

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates | None = None,
        *,
        log_q: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of the batch: a scalar.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: From a sampler. None for plain tensors: item ``b`` is the own item of query
                ``b``, and the other items are its negatives, those beyond the first ``B`` included.
            log_q: ``(N,)`` or ``(B, N)`` float log probability of each item as a negative, for plain
                tensors; see ``Candidates``. None where all are equally likely.
            temperature: Divisor of the dot products, above 0; a tensor of one value is learnt.
            hidden: ``(B, N)`` bool mask of candidates that are no negative of a query; or their places
                as ``known_positives`` returns them, ``(B, H)`` int64, in which a query with fewer
                repeats the place of its own item. None hides nothing.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)`` float in 0..1: whether the query likes its own item; None where all do.

        Raises:
            ValueError: A shape does not fit, the batch is empty, a label is not 1 and the loss takes no
                other, or a number ``temperature`` is not finite and above 0.
        """
        candidates, hidden = completed(query_vectors, item_vectors, candidates, log_q, hidden)
        positions = candidates.positions
        check_shapes(
            query_vectors, item_vectors, positions, hidden=hidden, weights=weights, labels=labels
        )
        check_temperature(temperature)
        if not self.takes_labels:
            check_all_liked(labels, self.name)
        scores = score(query_vectors, item_vectors, candidates, hidden)
        liked = torch.ones_like(scores.own) if labels is None else labels.to(scores.own.dtype)
        return weighted_mean(self._losses(scores, temperature, liked), weights)

    @abstractmethod
    def _losses(self, scores: Scores, temperature: float | Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each query, ``(B,)`` float, given ``(B,)`` labels."""
