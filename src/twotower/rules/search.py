"""The ranking that the other rules select from: by score, with boosts added.

The unit of a boost is the standard deviation of the query's scores over the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from twotower.arrays import Bools, Float32s, Floats, Rows
from twotower.histories import Histories
from twotower.index.base import Index, nothing_found
from twotower.vocab import FIRST_ROW, PADDING_ROW

_CHUNK = 2**15


class Pool(NamedTuple):
    """The first items of each query.

    Args:
        item_rows: ``(Q, n)`` int32, ``PADDING_ROW`` where there are fewer.
        scores: ``(Q, n)`` float32, the model's own; ``-inf`` where padded.
        moved: ``(Q, n)`` float32, the scores with boosts added, by which the pool is ordered.
    """

    item_rows: Rows
    scores: Float32s
    moved: Float32s

    def line(self, place: int) -> "Pool":
        """Return the items of one query without padding: arrays of shape ``(m,)``."""
        real = self.item_rows[place] != PADDING_ROW
        return Pool(*(each[place][real] for each in self))


class Boosts(NamedTuple):
    """What boosts add to the score of each item.

    Args:
        of_rows: ``(num_item_rows,)`` position in ``sums`` of each item row.
        sums: ``(n,)`` distinct sums of boosts, in standard deviations.
    """

    of_rows: npt.NDArray[np.integer]
    sums: Floats

    @staticmethod
    def of(matching: list[Bools], by: list[float]) -> "Boosts":
        """Return what boosts add.

        Args:
            matching: For each boost, at least one: ``(num_item_rows,)`` bool, which rows match.
            by: What each boost adds.
        """
        combination = np.zeros(len(matching[0]), np.uint16)
        for place, matches in enumerate(matching):
            combination |= matches.astype(np.uint16) << place
        each = [
            sum(amount for place, amount in enumerate(by) if which >> place & 1)
            for which in range(2 ** len(by))
        ]
        occurs = np.bincount(combination[FIRST_ROW:], minlength=len(each)) > 0
        sums = np.unique(np.array(each)[occurs])
        place_of = np.zeros(len(each), np.int64)
        place_of[occurs] = np.searchsorted(sums, np.array(each)[occurs])
        return Boosts(place_of[combination], sums)


class Order(NamedTuple):
    """The order that a second stage gives to the best items of each query.

    Args:
        item_rows: ``(Q, N)`` int32, distinct for each query; ``PADDING_ROW`` where there are fewer.
        scores: ``(Q, N)`` float32, what they score now: the scores that they had, handed out again.
    """

    item_rows: Rows
    scores: Float32s


@dataclass(frozen=True, eq=False)
class Search:
    """A search for ``Q`` queries that can be repeated on some of the items.

    Args:
        index_of: Returns the index for a slice of the queries, because an index may hold their words.
        query_vectors: ``(Q, dim)``.
        boosts: What to add to the scores, or None.
        deviations: ``(Q,)`` float32 standard deviations of the scores, the unit of boosts.
        exclude: For each query, item rows to leave out.
        allowed: ``(num_item_rows,)`` bool, the rows to search; None for all.
        order: What a second stage says of some items, or None.
    """

    index_of: Callable[[slice], Index]
    query_vectors: torch.Tensor
    boosts: Boosts | None
    deviations: Float32s
    exclude: Histories | None = None
    allowed: Bools | None = None
    order: Order | None = None

    def best(self, depth: int, here: slice = slice(None), among: Bools | None = None) -> Pool:
        """Return the first ``depth`` items of each query; equal scores are ordered by row.

        Args:
            depth: Number of items per query.
            here: The queries to search for.
            among: ``(num_item_rows,)`` bool, the rows to search; None for all allowed rows.
        """
        if self.order is None:
            return self._retrieved(depth, here, among)
        ordered = self._ordered(here, among)
        num = ordered.item_rows.shape[1]
        if self.boosts is None and among is None and num >= depth:
            others = ordered  # whatever is not among them scores less
        else:
            # So many items that as many as are wanted are left without those of the order.
            others = self._retrieved(depth + num, here, among)
            is_ordered = _are_in(others.item_rows, ordered.item_rows)
            rows = np.where(is_ordered, np.int32(PADDING_ROW), others.item_rows)
            scores, moved = (np.where(is_ordered, np.float32(-np.inf), each) for each in others[1:])
            others = Pool(
                np.concatenate([ordered.item_rows, rows], axis=1),
                np.concatenate([ordered.scores, scores], axis=1),
                np.concatenate([ordered.moved, moved], axis=1),
            )
        return _first_of(others, depth)

    def _ordered(self, here: slice, among: Bools | None) -> Pool:
        """Return the items of the order, with boosts added; those that may not be searched are padding."""
        assert self.order is not None
        rows, scores = self.order.item_rows[here], self.order.scores[here]
        moved = scores
        if self.boosts is not None:
            added = self.boosts.sums[self.boosts.of_rows[rows]].astype(np.float32)
            moved = scores + added * self.deviations[here, None]
        if among is not None:
            kept = among[rows]
            rows = np.where(kept, rows, np.int32(PADDING_ROW))
            scores, moved = (np.where(kept, each, np.float32(-np.inf)) for each in (scores, moved))
        return Pool(rows, scores, moved)

    def _retrieved(self, depth: int, here: slice, among: Bools | None) -> Pool:
        """Return ``best`` without a second stage."""
        allowed = self.allowed if among is None else among
        if among is not None and self.allowed is not None:
            allowed = among & self.allowed
        index, queries = self.index_of(here), self.query_vectors[here]
        exclude = None if self.exclude is None else self.exclude.take(here)
        if self.boosts is None:
            found = index.search(queries, depth, exclude=exclude, allowed=allowed)
            return Pool(found.item_rows, found.scores, found.scores)
        nothing = nothing_found(len(queries), depth, FIRST_ROW)
        pools = [Pool(nothing.item_rows, nothing.scores, nothing.scores)]
        # Items with the same sum keep their order, so the best of each group include the best of all.
        for which, added in enumerate(self.boosts.sums):
            rows = self.boosts.of_rows == which
            rows[:FIRST_ROW] = False
            if allowed is not None:
                rows &= allowed
            size = int(rows.sum())
            if size:
                found = index.search(queries, min(depth, size), exclude=exclude, allowed=rows)
                moved = found.scores + np.float32(added) * self.deviations[here, None]
                pools.append(Pool(found.item_rows, found.scores, moved))
        rows, scores, moved = (np.concatenate(each, axis=1) for each in zip(*pools, strict=True))
        return _first_of(Pool(rows, scores, moved), depth)


def _first_of(pool: Pool, depth: int) -> Pool:
    """Return the first items of each query, equal scores by row; padding comes last."""
    order = np.lexsort((pool.item_rows, -pool.moved), axis=1)[:, :depth]
    rows = np.take_along_axis(pool.item_rows, order, axis=1)
    scores, moved = (np.take_along_axis(each, order, axis=1) for each in pool[1:])
    return Pool(rows, scores, moved)


def _are_in(rows: Rows, others: Rows) -> Bools:
    """Return which rows are among the others of the same query: ``(Q, n)``."""
    owners = np.arange(len(rows), dtype=np.int64)[:, None] << 32
    return np.isin(owners | rows, owners | others)


class Moments:
    """The mean and the covariance of item vectors, kept while items come and go.

    The scores ``q . e`` of a query over all items have variance ``q' C q``, where ``C`` is the covariance
    of the vectors; so it costs ``dim ** 2`` a query, and each item is read when it comes and when it goes.

    Args:
        dim: Of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self._counted = np.zeros(0, np.bool_)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._squares = torch.zeros((dim, dim), dtype=torch.float64)

    def count(self, item_vectors: torch.Tensor, offered: Bools | None) -> None:
        """Count the items that are there now, and no others.

        Args:
            item_vectors: ``(num_item_rows, dim)``; a row that was there is as it was.
            offered: ``(num_item_rows,)``; None are all but the reserved rows.
        """
        now = np.ones(len(item_vectors), np.bool_) if offered is None else offered.copy()
        now[:FIRST_ROW] = False
        before = np.zeros(len(now), np.bool_)
        before[: len(self._counted)] = self._counted
        for rows, sign in ((now & ~before, 1), (before & ~now, -1)):
            places = np.flatnonzero(rows)
            for start in range(0, len(places), _CHUNK):
                some = torch.from_numpy(places[start : start + _CHUNK]).to(item_vectors.device)
                vectors = item_vectors[some].cpu().double()
                self._sum += sign * vectors.sum(dim=0)
                self._squares += sign * (vectors.T @ vectors)
        self._counted = now

    def deviations(self, query_vectors: torch.Tensor) -> Float32s:
        """Return the standard deviation of each query's scores: ``(Q,)``, 0 where there is no item."""
        num = max(1, int(self._counted.sum()))
        mean = self._sum / num
        covariance = self._squares / num - mean[:, None] * mean
        queries = query_vectors.cpu().double()
        variances = ((queries @ covariance) * queries).sum(dim=1).clamp(min=0)
        return np.asarray(variances.sqrt().numpy(), np.float32)
