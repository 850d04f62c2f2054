"""Softmax in both directions: a query among items, and its item among queries."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from twotower.losses.candidates import Candidates
from twotower.losses.checks import completed
from twotower.losses.scores import at_least_float32
from twotower.losses.softmax import SoftmaxLoss, softmax_loss


class SymmetricSoftmaxLoss:
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

    def __init__(
        self, label_smoothing: float = 0.0, *, precision: torch.dtype | None = None
    ) -> None:
        self._of_items = SoftmaxLoss(label_smoothing, precision=precision)

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
        """Return the weighted mean loss of the batch: a scalar, in nats.

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
            labels: ``(B,)``, all of which must be 1; None says the same.

        Raises:
            ValueError: A label is not 1, or what ``softmax_loss`` raises.
        """
        candidates, hidden = completed(query_vectors, item_vectors, candidates, log_q, hidden)
        # Once for both directions: gradients in half precision would be rounded before they are added.
        queries, items = at_least_float32(query_vectors), at_least_float32(item_vectors)
        of_items = self._of_items(
            queries,
            items,
            candidates,
            temperature=temperature,
            hidden=hidden,
            weights=weights,
            labels=labels,
        )
        known = _KnownQueries(candidates, hidden)
        of_queries = softmax_loss(
            # The gradient of embedding is quicker than that of indexing.
            embedding(candidates.positions[known.order], items),
            queries,
            known.order,
            temperature=temperature,
            log_q=candidates.query_log_q,
            hidden=known,
            weights=None if weights is None else weights[known.order],
            label_smoothing=self._of_items.label_smoothing,
            precision=self._of_items.precision,
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
        self._groups = [(item_of, _Groups.of(liked, likers))]
        if candidates.query_rows is not None:
            _, query_of = torch.unique(candidates.query_rows, return_inverse=True)
            self._groups.append((query_of, _Groups.of(query_of, batch)))
        # Neighbours in a slice are padded to one length.
        self.order = self._groups[0][1].counts[item_of].argsort(stable=True)

    def __call__(self, part: slice) -> Tensor:
        """Return the batch's queries that like the items of ``order[part]``: ``(rows, H)``."""
        rows = self.order[part]
        found = [groups.members_of(group_of[rows], rows) for group_of, groups in self._groups]
        return torch.cat(found, dim=1)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Members of groups ``0..G-1``, one group after the other.

    Args:
        members: ``(n,)`` int64.
        starts: ``(G,)`` int64 place of each group's first member.
        counts: ``(G,)`` int64.
    """

    members: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, groups: Tensor, members: Tensor) -> "_Groups":
        """Return the groups of ``(n,)`` members, each in the group that stands at its place."""
        counts = torch.bincount(groups)
        order = groups.argsort(stable=True)
        return cls(members[order], counts.cumsum(0) - counts, counts)

    def members_of(self, groups: Tensor, filler: Tensor) -> Tensor:
        """Return the members of ``(rows,)`` groups, padded with ``(rows,)`` fillers: ``(rows, H)``."""
        counts = self.counts[groups][:, None]
        steps = torch.arange(int(counts.max()), device=groups.device)
        places = (self.starts[groups][:, None] + steps).clamp_(max=len(self.members) - 1)
        return torch.where(steps < counts, self.members[places], filler[:, None])
