"""Items of earlier batches as further negatives, with the vectors that they had then."""

import torch
from torch import Tensor

from twotower.errors import check_least
from twotower.losses.candidates import Candidates, Pairs
from twotower.losses.frequencies import LogShares
from twotower.losses.negatives import check_drawn, distinct_rows, log_any


class Memory:
    """The batch's own items, and those of the last batches: many negatives for the price of few.

    What is remembered is not encoded again: a vector is at most ``batches`` steps old, and an item of
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
        rows, positions = distinct_rows(pairs.item_rows)
        draws = len(pairs) - 1 + sum(size for _, _, size in self._held)
        stored = fresh_share = None
        num_fresh = len(rows)
        if self._held:
            asked = torch.cat([rows, *(held for held, _, _ in self._held)])
            # The first of equal rows is the newest, as the sort is stable.
            order = asked.argsort(stable=True)
            is_first = torch.ones(len(asked), dtype=torch.bool, device=asked.device)
            is_first[1:] = asked[order].diff() != 0
            newest = order[is_first]
            newest = newest[newest >= len(rows)].sort().values
            vectors = torch.cat([held for _, held, _ in self._held])
            stored = vectors.index_select(0, newest - len(rows))
            rows = torch.cat([rows, asked[newest]])
        log_p = self._log_p[rows]
        check_drawn(log_p, rows)
        log_q = log_any(log_p.exp(), draws)
        if stored is not None and len(pairs) > 1:
            in_batch = log_any(log_p[:num_fresh].exp(), len(pairs) - 1)
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
