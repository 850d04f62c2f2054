"""What every loss but the chunked softmax starts from: a batch's dot products, and the masks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from twotower.errors import ArgumentError
from twotower.losses.candidates import Candidates


@dataclass(frozen=True, eq=False)
class Scores:
    """The dot products of ``B`` queries with what each is scored against.

    Args:
        dots: ``(B, n)`` float; ``n`` is ``N``, or fewer where each query has candidates of its own.
        own: ``(B,)`` float, those with the own items.
        left_out: ``(B, n)`` bool: what is no negative of that query; the own item is among it.
        log_q: ``(n,)`` or ``(B, n)`` float, or None where it is equal for all.
    """

    dots: Tensor
    own: Tensor
    left_out: Tensor
    log_q: Tensor | None

    def negative_shares(self) -> Tensor:
        """Return the weight of each candidate in its query's mean over negatives: ``(B, n)`` float.

        Shares are proportional to ``1 / q`` among the negatives and sum to 1 a query, so that the
        mean is over the whole catalogue, estimated; all are 0 for a query without any.
        """
        if self.log_q is None:
            negatives = (~self.left_out).to(self.dots.dtype)
            return negatives.div_(negatives.sum(1, keepdim=True).clamp_(min=1))
        logits = self.log_q.to(self.dots.dtype).neg().expand_as(self.dots)
        # A row without negatives is all -inf, whose softmax is NaN: it has nothing to weigh.
        return logits.masked_fill(self.left_out, -torch.inf).softmax(1).nan_to_num_(0.0)


def score(
    query_vectors: Tensor, item_vectors: Tensor, candidates: Candidates, hidden: Tensor | None
) -> Scores:
    """Return the dot products of a batch and what of it counts as a negative.

    Args:
        query_vectors: ``(B, d)`` float.
        item_vectors: ``(N, d)`` float vectors of ``candidates.item_rows``.
        candidates: What the queries are scored against.
        hidden: ``(B, H)`` int64 places in ``candidates`` that are no negative of a query; a query
            with fewer repeats the place of its own item. None hides nothing.

    Returns:
        Dot products in float32 where the vectors are in half precision.

    Raises:
        ValueError: There is not one vector a candidate, or ``candidates.log_q`` does not fit.
    """
    batch, num, columns = len(query_vectors), len(candidates), candidates.columns
    if len(item_vectors) != num:
        raise ArgumentError(
            f"item_vectors must be the vectors of all {num} candidates, got {len(item_vectors)}."
        )
    shapes = ((num,), (batch, num if columns is None else columns.shape[1]))
    if candidates.log_q is not None and candidates.log_q.shape not in shapes:
        raise ArgumentError(
            f"log_q must be {shapes[0]} or {shapes[1]}, got {tuple(candidates.log_q.shape)}."
        )
    query_vectors, item_vectors = at_least_float32(query_vectors), at_least_float32(item_vectors)
    if columns is not None:
        return _per_query(query_vectors, item_vectors, candidates, columns, hidden)
    own_places = candidates.positions[:, None]
    dots = query_vectors @ item_vectors.T  # (B, N)
    if candidates.never is None:
        left_out = torch.zeros(dots.shape, dtype=torch.bool, device=dots.device)
    else:
        left_out = candidates.never.repeat(len(dots), 1)
    if hidden is not None:
        left_out.scatter_(1, hidden, True)
    left_out.scatter_(1, own_places, True)
    return Scores(dots, dots.gather(1, own_places).squeeze(1), left_out, candidates.log_q)


def at_least_float32(vectors: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, which a sum over thousands needs; else the same."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``losses``, ``(n,)``, weighted by ``weights``, ``(n,)``; None is 1."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


def _per_query(
    query_vectors: Tensor,
    item_vectors: Tensor,
    candidates: Candidates,
    columns: Tensor,
    hidden: Tensor | None,
) -> Scores:
    # (B, n, d); the gradient of embedding is quicker than that of indexing.
    gathered = embedding(columns, item_vectors)
    dots = torch.einsum("bd,bnd->bn", query_vectors, gathered)
    left_out = columns == candidates.positions[:, None]
    if candidates.never is not None:
        left_out |= candidates.never[columns]
    if hidden is not None and hidden.shape[1]:
        ordered = hidden.sort(dim=1).values
        nearest = torch.searchsorted(ordered, columns).clamp_(max=hidden.shape[1] - 1)
        left_out |= ordered.gather(1, nearest) == columns
    log_q = candidates.log_q
    if log_q is not None and log_q.ndim == 1:
        log_q = log_q[columns]
    # The own item is the first candidate of each query.
    return Scores(dots, dots[:, 0], left_out, log_q)
