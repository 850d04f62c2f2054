"""Softmax for the first ranks: a query counts by how near its own item is to the top ``k``."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from twotower.losses.candidates import Candidates
from twotower.losses.checks import check_all_liked, check_shapes
from twotower.losses.scores import Scores, score
from twotower.losses.softmax import SoftmaxLoss


class SoftmaxAtKLoss:
    """SL@K: softmax whose queries weigh by whether their own item is among the best ``top_k``.

    The loss is the mean of the queries' softmax losses with weights
    ``sigmoid((<query, own> - level) / weight_temperature)``, where ``level`` is the score of the
    query's ``top_k``-th best item. An item far below it is left for later: it would not be shown.
    The level is estimated from the candidates: a negative stands for as many of the ``num_items``
    items as its share ``1 / q`` says, the own item for itself. With every item as a candidate it is
    the ``top_k``-th highest score; with fewer than ``num_items / top_k`` it is the highest.

    Prefer ``SoftmaxLoss`` to start with: levels mean little before scores do.

    Args:
        top_k: Ranks that count, at least 1; more than there are items are all of them.
        num_items: Items of the catalogue, at least 2.
        weight_temperature: Divisor of the difference of dot products in the weight, finite and
            above 0; the greater, the more alike the weights.

    Raises:
        ValueError: An argument is out of range.

    Source: Yang et al., KDD 2025 (Breaking the Top-K Barrier), the SL@K loss and its estimate of
        quantiles from a sample. Differs: weights are divided by their mean over the batch and are
        not differentiated, since a falling weight would reward a falling score; a level is
        estimated in each batch for the whole catalogue, where theirs is kept a while and is the
        ``top_k``-th score of the sample.
    """

    def __init__(self, top_k: int, num_items: int, weight_temperature: float = 1.0) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        if num_items < 2:
            raise ValueError(f"num_items must be at least 2, got {num_items}.")
        if not 0 < weight_temperature < math.inf:
            raise ValueError(
                f"weight_temperature must be finite and above 0, got {weight_temperature}."
            )
        self.top_k = top_k
        self.num_items = num_items
        self.weight_temperature = weight_temperature
        self._softmax = SoftmaxLoss()

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        *,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of the batch: a scalar, in nats.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
            candidates: What the queries are scored against.
            temperature: Divisor of the dot products, above 0; a tensor of one value is learnt.
            hidden: ``(B, H)`` int64 places of candidates that are no negative of a query; a query
                with fewer repeats the place of its own item. None hides nothing.
            weights: ``(B,)`` float, at least 0 and not all 0; None where all are 1.
            labels: ``(B,)``, all of which must be 1; None says the same.

        Raises:
            ValueError: A shape does not fit, the batch is empty, a label is not 1, or a number
                ``temperature`` is not finite and above 0.
        """
        positions = candidates.positions
        check_shapes(
            query_vectors, item_vectors, positions, hidden=hidden, weights=weights, labels=labels
        )
        check_all_liked(labels, "softmax-at-k")
        with torch.no_grad():
            scores = score(query_vectors, item_vectors, candidates, hidden)
            above = scores.own - _level(scores, self.top_k, self.num_items)
            log_weights = logsigmoid(above / self.weight_temperature)
            if weights is not None:
                log_weights = log_weights + weights.to(log_weights.dtype).log()
            # Scaled by the greatest: far below the level all weights of a batch would round to 0.
            scaled = (log_weights - log_weights.max()).exp()
        return self._softmax(
            query_vectors,
            item_vectors,
            candidates,
            temperature=temperature,
            hidden=hidden,
            weights=scaled,
        )


def _level(scores: Scores, top_k: int, num_items: int) -> Tensor:
    """Return the score of the ``top_k``-th best of all items, estimated: ``(B,)`` float."""
    own, shares = scores.own[:, None], scores.negative_shares()
    dots = scores.dots.masked_fill(scores.left_out, -math.inf)
    others = num_items - 1
    # Half an item less, so that rounding in the sum of whole items does not move the level.
    wanted = (1 + others * shares.sum(1, keepdim=True)).clamp(max=top_k) - 0.5
    size = min(top_k, dots.shape[1])
    while True:
        best, places = dots.topk(size, dim=1)
        highest, order = torch.cat([own, best], dim=1).sort(dim=1, descending=True)
        items = torch.cat([torch.ones_like(own), others * shares.gather(1, places)], dim=1)
        reached = items.gather(1, order).cumsum(1) >= wanted  # (B, 1 + size)
        level = highest.gather(1, (~reached).sum(1, keepdim=True).clamp(max=size))
        # Of what scores below the last of the best, only the own item has been looked at.
        if size == dots.shape[1] or bool((level >= best[:, -1:]).all()):
            return level.squeeze(1)
        size = min(2 * size, dots.shape[1])
