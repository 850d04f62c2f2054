"""Softmax in both directions: a query among items, and its item among queries."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from twotower.losses.base import Batch
from twotower.losses.candidates import Candidates
from twotower.losses.scores import at_least_float32
from twotower.losses.softmax import SoftmaxLoss, softmax_loss


class SymmetricSoftmaxLoss(SoftmaxLoss):
    """Mean of two softmax losses: of own items among candidates, of own queries among the batch's.

    The second asks which query of the batch an item belongs to; its logits are corrected by
    ``candidates.query_log_q``. No negative of an item are the queries that are known to like it: those
    whose own item it is, too, those that ``hidden`` tells of, and, where ``candidates.query_rows`` are
    known, those of the same query.

    Args:
        label_smoothing: As of ``SoftmaxLoss``, in both directions.
        precision: As of ``SoftmaxLoss``, in both directions.

    Raises:
        ValueError: An argument is out of range.

    Prefer ``SoftmaxLoss`` where only items are retrieved: this costs more and learns, besides, which
    queries an item is for.

    Source: Radford et al., ICML 2021, section 2.3 and figure 3. Differs: corrected by ``log_q``, with
        candidates besides the own items, and without known positives among the negatives.
    """

    def _of(self, batch: Batch) -> Tensor:
        # Once for both directions: gradients in half precision would be rounded before they are added.
        queries, items = at_least_float32(batch.queries), at_least_float32(batch.items)
        of_items = super()._of(replace(batch, queries=queries, items=items))
        candidates, weights = batch.candidates, batch.weights
        known = _KnownQueries(candidates, batch.hidden)
        of_queries = softmax_loss(
            # The gradient of embedding is quicker than that of indexing.
            embedding(candidates.positions[known.order], items),
            queries,
            known.order,
            temperature=batch.temperature,
            log_q=candidates.query_log_q,
            hidden=known,
            weights=None if weights is None else weights[known.order],
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )
        return (of_items + of_queries) / 2


class _KnownQueries:
    """For each own item of a batch, the queries that are known to like it.

    All pairs at once could be a part of ``B x B``; they are found for a slice of the batch when asked.

    Args:
        candidates: Of the batch.
        hidden: ``(B, H)`` places of the items that the queries are known to like besides their own.
    """

    def __init__(self, candidates: Candidates, hidden: Tensor | None) -> None:
        positions = candidates.positions
        batch = torch.arange(len(positions), device=positions.device)
        items, item_of = torch.unique(candidates.item_rows[positions], return_inverse=True)
        likers, liked = batch, item_of
        if hidden is not None:
            nearest = torch.searchsorted(items, candidates.item_rows).clamp_(max=len(items) - 1)
            is_own = items[nearest] == candidates.item_rows  # (N,): of some query of the batch
            is_more = is_own[hidden] & (hidden != positions[:, None])  # a filler says nothing new
            likers = torch.cat([likers, is_more.nonzero()[:, 0]])
            liked = torch.cat([liked, nearest[hidden[is_more]]])
        self._groups = [(item_of, _Groups(liked, likers))]
        if candidates.query_rows is not None:
            _, query_of = torch.unique(candidates.query_rows, return_inverse=True)
            self._groups.append((query_of, _Groups(query_of, batch)))
        # Neighbours in a slice are padded to one length.
        self.order = self._groups[0][1].counts[item_of].argsort(stable=True)

    def __call__(self, part: slice) -> Tensor:
        """Return the batch's queries that like the items of ``order[part]``: ``(rows, H)``."""
        rows = self.order[part]
        found = [groups.members_of(group_of[rows], rows) for group_of, groups in self._groups]
        return torch.cat(found, dim=1)


class _Groups:
    """Members of groups ``0..G-1``, one group after the other.

    Args:
        groups: ``(n,)`` int64, the group of each member.
        members: ``(n,)`` int64.
    """

    def __init__(self, groups: Tensor, members: Tensor) -> None:
        self.counts = torch.bincount(groups)  # (G,)
        self._members = members[groups.argsort(stable=True)]
        self._starts = self.counts.cumsum(0) - self.counts  # (G,) place of each group's first

    def members_of(self, groups: Tensor, filler: Tensor) -> Tensor:
        """Return the members of ``(rows,)`` groups, padded with ``(rows,)`` fillers: ``(rows, H)``."""
        counts = self.counts[groups][:, None]
        steps = torch.arange(int(counts.max()), device=groups.device)
        places = (self._starts[groups][:, None] + steps).clamp_(max=len(self._members) - 1)
        return torch.where(steps < counts, self._members[places], filler[:, None])
