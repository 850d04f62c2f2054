"""Negatives that depend on the model: items that it ranks high, and vectors of earlier batches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from twotower.errors import ArgumentError, check_least
from twotower.losses import negatives
from twotower.losses.candidates import Candidates, Pairs
from twotower.losses.frequencies import LogShares
from twotower.vocab import FIRST_ROW, PADDING_ROW


class HardNegatives(negatives.Drawing):
    """The batch's own items, items drawn evenly, and items that were mined for the batch's queries.

    All candidates are shared by the batch and stand once, and ``log_q`` is the log of the probability
    that any draw proposes the item: by training frequency for the own items, evenly, and for the
    mined ones by how often a query at random has it in its list. The corrected softmax then aims at
    what it aims at with any sampler, with less noise where the model errs most. It is approximate in
    one point: the draws from a batch's lists are taken as independent of its own items. Before the
    first call of ``refresh`` it samples like ``Mixed``.

    Args:
        log_p: Log of each item's share of training, by row.
        item_rows: ``(I,)`` int64 distinct rows of the catalogue, which holds every own item.
        num: Draws a batch beside the own items, at least 1.
        share: Of them that are mined, in [0, 1].

    Raises:
        ValueError: There is no item, ``num`` is below 1, ``share`` is out of its range, or (when called)
            an item has no training events or the pairs have no query rows.

    Source: Xiong et al., ICLR 2021 (ANCE: mined from an index of an earlier state, again and again).
        Differs: shared by the batch, and corrected for how likely they are.
    """

    def __init__(self, log_p: LogShares, item_rows: Tensor, num: int, share: float) -> None:
        super().__init__(item_rows, num)
        if not 0 <= share <= 1:
            raise ArgumentError(f"share must be in [0, 1], got {share}.")
        self._log_p = log_p
        self._num_mined = round(num * share)
        self._mined: Tensor | None = None
        self._mined_share = torch.zeros(0)

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the distinct items among the own ones and all draws, ordered by row."""
        if pairs.query_rows is None:
            raise ArgumentError("pairs must have query_rows, got None: mined items are a query's.")
        num_mined = self._num_mined if self._mined is not None else 0
        num_even = self._num - num_mined
        drawn, device = [self._draw(generator, num_even)], pairs.item_rows.device
        if self._mined is not None:
            lines = torch.randint(len(pairs), (num_mined,), generator=generator, device=device)
            lists = self._mined[pairs.query_rows[lines]]
            lengths = (lists != PADDING_ROW).sum(1)
            spots = torch.rand(num_mined, generator=generator, device=device) * lengths
            picked = lists.gather(1, spots.long()[:, None]).squeeze(1)
            drawn.append(picked[picked != PADDING_ROW])
        rows, places = negatives.distinct_rows(torch.cat([pairs.item_rows, *drawn]))
        log_p = self._log_p[rows]
        negatives.check_drawn(log_p[places[: len(pairs)]], pairs.item_rows)
        log_absent = (
            negatives.log_undrawn(log_p.exp(), len(pairs) - 1) + num_even * self._log_undrawn()
        )
        if num_mined:
            log_absent += negatives.log_undrawn(self._mined_share[rows], num_mined)
        return Candidates(rows, places[: len(pairs)], negatives.log_of_rest(log_absent))

    def refresh(self, mined: Tensor, query_shares: Tensor) -> None:
        """Take new lists.

        Args:
            mined: ``(num_query_rows, m)`` int64 item rows, ``PADDING_ROW`` after the last.
            query_shares: ``(num_query_rows,)`` float, each query's share of the training events.
        """
        is_item = mined != PADDING_ROW
        each = query_shares / is_item.sum(1).clamp(min=1)
        num_rows = int(self._item_rows.max()) + 1
        weights = each[:, None].expand_as(mined)[is_item].double()
        shares = torch.bincount(mined[is_item], weights=weights, minlength=num_rows)
        self._mined, self._mined_share = mined, shares.clamp(max=1 - 1e-9).float()


def mine(
    query_vectors: Tensor,
    item_vectors: Tensor,
    own_rows: Tensor,
    known: Callable[[slice], tuple[Tensor, Tensor]],
    *,
    depth: int,
    margin: float,
    chunk: int = 1024,
    offered: Tensor | None = None,
) -> Tensor:
    """Return the items that each query ranks highest and is not known to like: ``(Q, depth)`` int64.

    An item that scores above ``own - margin |own|`` is left out, ``own`` being the score of the
    query's own item: the query may well like an item that is so close to it. ``PADDING_ROW`` stands
    where a query has fewer than ``depth``.

    Args:
        query_vectors: ``(Q, d)`` float.
        item_vectors: ``(num_item_rows, d)`` float; rows that are no item are zero.
        own_rows: ``(Q,)`` int64 an item that the query likes, apart from what its vector was read from.
        known: Returns all that a slice of the queries likes: int64 lines, counted from the slice's start,
            and as many item rows.
        depth: At least 1.
        margin: In [0, 1).
        chunk: Queries at a time.
        offered: ``(num_item_rows,)`` bool, the items that may be mined; None allows all.

    Source: Moreira et al., 2024 (NV-Retriever), section 3 (TopK-PercPos).
    """
    found = []
    for start in range(0, len(query_vectors), chunk):
        part = slice(start, start + chunk)
        scores = query_vectors[part] @ item_vectors.T
        own = scores.gather(1, own_rows[part, None])
        scores.masked_fill_(scores > own - margin * own.abs(), -math.inf)
        lines, rows = known(part)
        scores[lines, rows] = -math.inf
        scores[:, :FIRST_ROW] = -math.inf
        if offered is not None:
            scores.masked_fill_(~offered, -math.inf)
        best, picked = scores.topk(min(depth, scores.shape[1]), dim=1)
        found.append(torch.where(best == -math.inf, PADDING_ROW, picked))
    return torch.cat(found)


class Memory:
    """The batch's own items, and those of the last batches: many negatives for the price of few.

    Remembered items are not encoded again: a vector is at most ``batches`` steps old, and an item of
    the present batch takes its fresh one. Each item stands once, with its newest vector, and
    ``log_q`` is the log of the probability that any of these batches holds it. Remembered vectors
    get no gradient. So ``fresh_share`` says how seldom an item is one that gets one: what pushes it
    away when it is encoded must stand for all the times that it was only remembered, or rare items, which
    mostly are, rise far above their place.

    Args:
        log_p: Log of each item's share of training, by row.
        batches: Earlier batches that are remembered, at least 1.

    Raises:
        ValueError: ``batches`` is below 1, or (when called) an item has no training events.

    Source: Wang, Zhang, Huang and Scott, CVPR 2020 (XBM), section 3.2; Wang, Zhu and He, SIGIR 2021
        (cross-batch negative sampling), section 3.3. Differs: no warm-up; an item stands once,
        ``log_q`` says how likely that was, and the items' gradients are made up for.
    """

    def __init__(self, log_p: LogShares, batches: int) -> None:
        check_least(1, batches=batches)
        self._log_p = log_p
        self._batches = batches
        self._held: list[tuple[Tensor, Tensor, int]] = []  # rows, vectors, batch size; newest first

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return the batch's distinct items, and then those that are remembered."""
        rows, positions = negatives.distinct_rows(pairs.item_rows)
        draws = len(pairs) - 1 + sum(size for _, _, size in self._held)
        stored = fresh_share = None
        num_fresh = len(rows)
        if self._held:
            asked = torch.cat([rows, *(held for held, _, _ in self._held)])
            distinct, which = negatives.distinct_rows(asked)
            places = torch.arange(len(asked), device=asked.device)
            newest = torch.full_like(distinct, len(asked)).scatter_reduce(0, which, places, "amin")
            newest = newest[newest >= len(rows)].sort().values
            vectors = torch.cat([held for _, held, _ in self._held])
            stored = vectors.index_select(0, newest - len(rows))
            rows = torch.cat([rows, asked[newest]])
        log_p = self._log_p[rows]
        negatives.check_drawn(log_p, rows)
        log_q = negatives.log_any(log_p.exp(), draws)
        if stored is not None and len(pairs) > 1:
            in_batch = negatives.log_any(log_p[:num_fresh].exp(), len(pairs) - 1)
            fresh_share = (in_batch - log_q[:num_fresh]).exp()
        return Candidates(rows, positions, log_q, stored=stored, fresh_share=fresh_share)

    def push(self, rows: Tensor, vectors: Tensor, batch_size: int) -> None:
        """Remember a batch, and forget the oldest.

        Args:
            rows: ``(n,)`` int64 distinct items that were encoded.
            vectors: ``(n, d)`` float their vectors.
            batch_size: Draws that they came from.
        """
        self._held.insert(0, (rows, vectors.detach(), batch_size))
        del self._held[self._batches :]

    def clear(self) -> None:
        """Forget all: the vectors are of other weights."""
        self._held.clear()
