"""Softmax cross-entropy of each query's own item against its candidates."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twotower.errors import ArgumentError
from twotower.losses.base import Batch, BatchLoss, check_shapes, check_temperature
from twotower.losses.scores import at_least_float32, score, weighted_mean
from twotower.losses.softmax_kernel import ChunkedSoftmax

# Numbers of gathered item vectors at once, where each query has candidates of its own: 64 MB.
PER_QUERY_NUMBERS = 2**24


class SoftmaxLoss(BatchLoss):
    """Softmax over the candidates, corrected by their ``log_q``: the default for retrieval.

    Args:
        label_smoothing: Share ``e`` of the target that is spread over the negatives, in ``[0, 1)``. It
            is spread evenly over the catalogue, estimated: a negative gets ``e / q``, scaled to a sum
            of ``e`` a query, since ``q`` is how often it stands for the others. A query without
            negatives keeps its whole target.
        precision: Of the factors of the products with candidates: ``torch.bfloat16`` or None, which is
            that of the vectors, at least float32. In bfloat16 a logit is off by up to 1 part in 256,
            which for logits within 20 shifts gradients by about 1 % (at random, not to one side); the
            own item's logit, sums and results are in full precision.

    Raises:
        ValueError: An argument is out of range.

    Source: Yi et al., RecSys 2019, section 3; Szegedy et al., CVPR 2016, section 7 (smoothing). Differs:
        smoothed over the negatives, without the own item.
    """

    name = "softmax"

    def __init__(
        self, label_smoothing: float = 0.0, *, precision: torch.dtype | None = None
    ) -> None:
        _check_settings(label_smoothing, precision)
        self.label_smoothing = label_smoothing
        self.precision = precision

    def _of(self, batch: Batch) -> Tensor:
        candidates = batch.candidates
        if candidates.columns is not None:
            return weighted_mean(self._per_query(batch, candidates.columns), batch.weights)
        fresh_share, factors = candidates.fresh_share, None
        if fresh_share is not None:
            num_stored = len(batch.items) - len(fresh_share)
            factors = F.pad(1 / fresh_share, (0, num_stored), value=1.0)
        return softmax_loss(
            batch.queries,
            batch.items,
            candidates.positions,
            temperature=batch.temperature,
            log_q=candidates.log_q,
            never=candidates.never,
            hidden=batch.hidden,
            weights=batch.weights,
            item_factors=factors,
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )

    def _per_query(self, batch: Batch, columns: Tensor) -> Tensor:
        """Return the losses of queries with candidates of their own: ``(B,)``.

        A batch whose gathered item vectors are large is computed in parts, each once more in the
        backward pass.
        """
        step = max(1, PER_QUERY_NUMBERS // (columns.shape[1] * batch.items.shape[1]))
        if step >= len(columns):
            return self._gathered(batch)
        parts = [slice(start, start + step) for start in range(0, len(columns), step)]
        return torch.cat(
            [checkpoint(self._gathered, batch.take(part), use_reentrant=False) for part in parts]
        )

    def _gathered(self, batch: Batch) -> Tensor:
        scores = score(batch.queries, batch.items, batch.candidates, batch.hidden)
        logits = scores.dots / batch.temperature
        if scores.log_q is not None:
            logits = logits - scores.log_q
        absent = scores.left_out.clone()
        absent[:, 0] = False  # the own item
        log_probs = logits.masked_fill(absent, -torch.inf).log_softmax(1)
        if not self.label_smoothing:
            return -log_probs[:, 0]
        spread = self.label_smoothing * scores.negative_shares()
        own_share = 1 - spread.sum(1)
        return -own_share * log_probs[:, 0] - (spread * log_probs.masked_fill(absent, 0)).sum(1)


def softmax_loss(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    log_q: Tensor | None = None,
    never: Tensor | None = None,
    hidden: Tensor | Callable[[slice], Tensor] | None = None,
    weights: Tensor | None = None,
    item_factors: Tensor | None = None,
    label_smoothing: float = 0.0,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Return the weighted mean over queries of ``-log softmax(logits)[own]``: a scalar, in nats.

    The logit of query ``b`` and candidate ``j`` is ``<query_b, item_j> / temperature - log_q_j``,
    the own item's included. The ``(B, N)`` logits are never kept: gradients are computed chunk by
    chunk beside the loss, so memory is ``O(chunk)`` and the backward pass costs nothing; there is
    no second derivative. Half precision vectors are computed in float32 but for ``precision``.

    Args:
        query_vectors: ``(B, d)`` float, ``B`` at least 1.
        item_vectors: ``(N, d)`` float.
        positions: ``(B,)`` int64 in ``0..N-1``, the own item of each query; it is never hidden.
        temperature: Divisor of the dot products, above 0; a tensor of one value gets a gradient.
        log_q: ``(N,)`` or ``(B, N)`` float, not differentiated; None is 0.
        never: ``(N,)`` bool, candidates that no query is scored against.
        hidden: ``(B, H)`` int64 places of candidates that a query is not scored against; or a
            function from a slice of the batch to those of its queries.
        weights: ``(B,)`` float, at least 0 and not all 0, not differentiated; None is 1.
        item_factors: ``(N,)`` float, what the gradient that an item gets as a negative is multiplied by;
            see ``Memory``. None is 1.
        label_smoothing: See ``SoftmaxLoss``.
        precision: See ``SoftmaxLoss``.

    Raises:
        ValueError: A shape does not fit, the batch is empty, or a number is out of range.

    Source: Yi et al., RecSys 2019, section 3. Differs: candidates can be hidden.
    """
    places = hidden if isinstance(hidden, Tensor) else None
    check_shapes(query_vectors, item_vectors, positions, hidden=places, weights=weights)
    check_temperature(temperature)
    _check_settings(label_smoothing, precision)
    batch, num = len(query_vectors), len(item_vectors)
    if log_q is not None and log_q.shape not in ((num,), (batch, num)):
        raise ArgumentError(
            f"log_q must be ({num},) or ({batch}, {num}), got {tuple(log_q.shape)}."
        )
    if item_factors is not None and item_factors.shape != (num,):
        raise ArgumentError(f"item_factors must be ({num},), got {tuple(item_factors.shape)}.")
    queries, items = at_least_float32(query_vectors), at_least_float32(item_vectors)
    loss: Tensor = ChunkedSoftmax.apply(  # type: ignore[no-untyped-call]
        queries,
        items,
        temperature,
        positions[:, None],
        log_q,
        never,
        hidden if places is None else places.__getitem__,
        weights,
        item_factors,
        label_smoothing,
        queries.dtype if precision is None else precision,
        torch.is_grad_enabled(),
    )
    return loss


def _check_settings(label_smoothing: float, precision: torch.dtype | None) -> None:
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    if precision not in (None, torch.bfloat16):
        raise ArgumentError(f"precision must be torch.bfloat16 or None, got {precision}.")
