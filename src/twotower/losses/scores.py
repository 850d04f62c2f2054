"""What every loss but the chunked softmax starts from: all dot products of a batch, and the masks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from twotower.losses.negatives import Candidates


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
        scores = torch.zeros_like(self.dots)
        if self.log_q is not None:
            scores = scores - self.log_q.to(scores.dtype)
        # A row without negatives is all -inf, whose softmax is NaN: it has nothing to weigh.
        return scores.masked_fill(self.left_out, -torch.inf).softmax(1).nan_to_num(0.0)


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
    """
    own_places = candidates.positions[:, None]
    if candidates.columns is not None:
        return _per_query(query_vectors, item_vectors, candidates, candidates.columns, hidden)
    dots = query_vectors @ item_vectors.T  # (B, N)
    if candidates.never is None:
        left_out = torch.zeros(dots.shape, dtype=torch.bool, device=dots.device)
    else:
        left_out = candidates.never.repeat(len(dots), 1)
    if hidden is not None:
        left_out.scatter_(1, hidden, True)
    left_out.scatter_(1, own_places, True)
    return Scores(dots, dots.gather(1, own_places).squeeze(1), left_out, candidates.log_q)


def _per_query(
    query_vectors: Tensor,
    item_vectors: Tensor,
    candidates: Candidates,
    columns: Tensor,
    hidden: Tensor | None,
) -> Scores:
    gathered = embedding(
        columns, item_vectors
    )  # (B, n, d); its gradient is quicker than indexing's
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
