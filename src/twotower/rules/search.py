"""The order of the catalogue that the other rules choose from: by score, moved by boosts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from twotower.histories import Histories
from twotower.index.base import Index
from twotower.vocab import FIRST_ROW, PADDING_ROW


class Pool(NamedTuple):
    """The first items of each query.

    Args:
        item_rows: ``(Q, n)`` int32, ``PADDING_ROW`` where there are fewer.
        scores: ``(Q, n)`` float32, the model's own; ``-inf`` where padded.
        moved: ``(Q, n)`` float32, with what boosts add: the order is by these.
    """

    item_rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    moved: npt.NDArray[np.float32]

    def line(self, place: int) -> "Pool":
        """Return the items of one query without padding: arrays of shape ``(m,)``."""
        real = self.item_rows[place] != PADDING_ROW
        return Pool(*(each[place][real] for each in self))


class Boosts(NamedTuple):
    """What boosts add to each item.

    Args:
        of_rows: ``(num_item_rows,)`` which of the sums.
        sums: ``(n,)`` of what is added, in standard deviations.
    """

    of_rows: npt.NDArray[np.integer]
    sums: npt.NDArray[np.float64]

    @staticmethod
    def of(matching: list[npt.NDArray[np.bool_]], by: list[float]) -> "Boosts":
        """Return what boosts add.

        Args:
            matching: ``(num_item_rows,)`` for each boost, at least one: which rows match.
            by: What each adds.
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


@dataclass(frozen=True, eq=False)
class Search:
    """A search for ``Q`` queries that can go on where it ended.

    Args:
        index_of: Gives the index for the queries at some places: it may know more of them than vectors.
        query_vectors: ``(Q, dim)``.
        boosts: What is added to the scores, if anything.
        deviations: ``(Q,)`` float32 standard deviations of the scores; read where there are boosts.
        exclude: Item rows that each query's answer must not hold.
        allowed: ``(num_item_rows,)`` bool, the rows that any answer may hold; None allows all.
    """

    index_of: Callable[[slice], Index]
    query_vectors: torch.Tensor
    boosts: Boosts | None
    deviations: npt.NDArray[np.float32]
    exclude: Histories | None = None
    allowed: npt.NDArray[np.bool_] | None = None

    def first(self, depth: int) -> Pool:
        """Return the first ``depth`` items of each query, of equal ones those of lower row."""
        return self._best(slice(0, len(self.query_vectors)), depth, self.allowed)

    def of_one(self, place: int, depth: int, among: npt.NDArray[np.bool_]) -> Pool:
        """Return the first items of the query at ``place`` among the rows of a mask: a pool of one line."""
        allowed = among if self.allowed is None else among & self.allowed
        return self._best(slice(place, place + 1), depth, allowed)

    def _best(self, here: slice, depth: int, allowed: npt.NDArray[np.bool_] | None) -> Pool:
        index, queries = self.index_of(here), self.query_vectors[here]
        exclude = None if self.exclude is None else self.exclude.take(here)
        if self.boosts is None:
            found = index.search(queries, depth, exclude=exclude, allowed=allowed)
            return Pool(found.item_rows, found.scores, found.scores)
        shape = (len(queries), depth)
        nothing = np.full(shape, -np.inf, np.float32)
        pools = [Pool(np.full(shape, PADDING_ROW, np.int32), nothing, nothing)]
        # Within one sum the order is that of the scores, so that the best of each hold the best of all.
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
        order = np.lexsort((rows, -moved), axis=1)[:, :depth]
        return Pool(*(np.take_along_axis(each, order, axis=1) for each in (rows, scores, moved)))
