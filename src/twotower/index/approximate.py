"""Approximate search: only the parts of the catalogue where a query's best items are likely to be."""

import warnings
from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Bools, Float32s, Ints
from twotower.errors import ArgumentError, MissingExtraError
from twotower.histories import Histories
from twotower.index.base import Found, Mask, nothing_found
from twotower.index.exact import ExactIndex
from twotower.index.lists import Lists, depth_of
from twotower.index.scans import best_of, best_rows, length_of, lengths_of, scan_of
from twotower.index.two_pass import exact_index
from twotower.vocab import FIRST_ROW, PADDING_ROW

_LEAST_SPARE, _SPARE = 16, 1 / 16
"""Items that are scored again beyond those wanted: so many, or this share of the depth if that is more.
Half precision needs no more for ordinary vectors. Among near-duplicates more are taken (``_MORE``)."""
_MORE = 8
"""How many times as many items are scored again where rounding may have left one out."""
_MOST_FETCHED = 2**16
"""Items of a query that are scored again at most; where that is too few, the query is searched exactly."""
_SCORING = 3.0
"""Nanoseconds that exact search in two passes, the fastest that there is, takes for a row. Measured on one
thread, one query at a time, with 200 thousand and a million items, 64 wide (``benchmarks/index.py``)."""
_MEASURED_WIDTH = 64
"""Width of the vectors that the costs of a row were measured with; they grow with it."""
_DENSE = 0.9
"""Share of allowed items from which on no list is taken to be without any."""
_ASKING, _MASKING, _SCANNING, _GATHERING = 5e4, 2.0, 5.0, 120.0
"""What a query costs, a row that may be allowed or not, a row of a list that is searched, and an allowed
row that is gathered to be scored exactly: nanoseconds. Measured with 200 thousand and a million items, 64
wide, the last one between a query alone (90 to 340) and batches of 64 (10). The lists of a query hold fewer
rows than other lists do, so that a row of an average list costs less than one that is scanned."""
_CHUNK_NUMBERS = 2**22
"""Numbers of fetched vectors held at once: 16 MB."""


class ApproximateIndex(ExactIndex):
    """Searches the lists that are likely to hold the best items.

    Scores are exact, and items of equal score are ordered by row; what may be missing are items of lists
    that were not searched. There are always ``k`` where so many exist. How many lists are searched depends
    on the query alone: on ``k``, on what is excluded, and on the share of items that is allowed, all three
    of which say how deep into the ranking of the whole catalogue the answer reaches. Few allowed items, and
    what is deeper than was tuned, are searched exactly.

    The lists are scanned in half precision, or by 4-bit codes if they have ``levels``. The best items of
    the scan are scored again in float32.

    Half precision cannot tell near-duplicates apart. By Cauchy and Schwarz a score is off by at most the
    query's length times what rounding took from an item. More items are scored again until the last answer
    is better than any item that is left out can be: so nothing is lost to rounding.

    Codes lose more, and their loss is part of the recall that was tuned. If the codes of the item at the
    depth and of the last one of the scan score alike, more items are scored again.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU; the reserved rows are never found.
        lists: Of the catalogue, tuned.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
        ValueError: The lists are of another catalogue.

    Source: Jégou, Douze and Schmid, PAMI 2011, section 4 (inverted lists), scanned by faiss. Differs: lists
        are of vectors with their lengths, and ranked by their means and spreads.
    """

    def __init__(self, item_vectors: Tensor, lists: Lists) -> None:
        super().__init__(item_vectors, reserved_rows=FIRST_ROW)
        num_items, dim = len(item_vectors) - FIRST_ROW, item_vectors.shape[1]
        if lists.list_of.shape != (num_items,) or lists.centres.shape[1] != dim:
            raise ArgumentError(
                f"lists must be of {num_items} items of {dim} numbers, got "
                f"{len(lists.list_of)} of {lists.centres.shape[1]}."
            )
        self.lists = lists
        self._num_items, self._width = num_items, dim
        self._depths = sorted(lists.probes)
        self._plans = {}  # by depth what to fetch and to search where nothing is left out
        for depth in self._depths if num_items else []:
            self._plans[depth] = self._fetched(depth, num_items), self._probes(depth, num_items)
        self._vectors = np.ascontiguousarray(item_vectors.numpy())
        self._scan = scan_of(item_vectors[FIRST_ROW:], lists)

    @property
    def bytes_per_item(self) -> float:
        """Memory that the index takes for an item beside its vector."""
        return self._scan.bytes_per_item

    def over(self, item_vectors: Tensor) -> "ApproximateIndex":
        """Return the index of a catalogue that has grown at its end, in the same lists."""
        return ApproximateIndex(item_vectors, self.lists.over(item_vectors))

    def _answer(self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None) -> Found:
        depth = k if k in self._plans else depth_of(k)
        if k < depth:  # every k up to a depth gets the beginning of one answer
            deeper = self._answer(queries, depth, exclude, allowed)
            return Found(deeper.item_rows[:, :k], deeper.scores[:, :k])
        vectors = np.ascontiguousarray(queries.numpy(), np.float32)
        num_queries, num_allowed, mask = len(vectors), self._num_items, None
        if allowed is not None:
            num_allowed = int(np.count_nonzero(allowed[FIRST_ROW:]))
            mask = allowed if num_allowed < self._num_items else None
        plan = self._plans.get(depth) if mask is None and not len(exclude.item_rows) else None
        if plan is not None and num_queries == 1:
            one = self._search_one(vectors[0], k, *plan, depth)
            if one is not None:
                return one
        if plan is not None and num_queries * plan[0] * self._width <= _CHUNK_NUMBERS:
            # The usual case, with few operations: every query is searched alike, and at once.
            found, is_sure = self._search_lists(vectors, k, exclude, None, *plan, depth)
            rows, best = found
            if np.count_nonzero(is_sure) == np.count_nonzero(rows[:, -1]) == num_queries:
                return found
        else:
            rows, best = nothing_found(num_queries, k, FIRST_ROW)
            is_sure = np.zeros(num_queries, np.bool_)  # that rounding has left nothing out
        by_depth = {depth: np.flatnonzero(~is_sure)}
        if len(exclude.item_rows):
            deep = np.array([depth_of(depth + each) for each in exclude.lengths.tolist()], np.int64)
            by_depth = {each: np.flatnonzero(deep == each) for each in set(deep.tolist())}
        for each, rest in by_depth.items():
            probes = self._probes(each, num_allowed)
            fetched = self._fetched(each, num_allowed) if probes else _MOST_FETCHED + 1
            while len(rest) and fetched <= _MOST_FETCHED:
                size = max(1, _CHUNK_NUMBERS // (fetched * self._width))
                for here in (rest[start : start + size] for start in range(0, len(rest), size)):
                    (rows[here], best[here]), is_sure[here] = self._search_lists(
                        vectors[here], k, exclude.take(here), mask, fetched, probes, each
                    )
                rest, fetched = rest[~is_sure[rest]], _MORE * fetched
        again = np.flatnonzero(~is_sure | (rows[:, -1] == PADDING_ROW))
        if len(again):
            part, sets = queries[torch.from_numpy(again)], exclude.take(again)
            rows[again], best[again] = super()._answer(part, k, sets, allowed)
        return Found(rows, best)

    def _probes(self, deep: int, num_allowed: int) -> int:
        """Return how many lists to search for a query; 0 where it is searched exactly.

        The rule reads one query alone: other queries of a batch must not change its answer.

        Args:
            deep: Place in the ranking of the allowed items that the answer reaches.
            num_allowed: Items that are allowed.
        """
        num_items, depth = self._num_items, self._depth(deep, num_allowed)
        if depth is None:
            return 0
        probes = self.lists.probes[depth]
        if num_allowed == num_items:
            return probes
        scanned = _SCANNING * num_items * probes / len(self.lists)
        is_quicker = _ASKING + _MASKING * num_items + scanned < _GATHERING * num_allowed
        return probes if is_quicker else 0

    def _depth(self, deep: int, num_allowed: int) -> int | None:
        """Return the depth that was tuned which holds the best allowed items; None where none does."""
        if not num_allowed:
            return None
        place = bisect_left(self._depths, deep * len(self.lists.list_of) / num_allowed)
        return self._depths[place] if place < len(self._depths) else None

    def _fetched(self, deep: int, num_allowed: int) -> int:
        """Return how many items of the scan to score again; arguments as of ``_probes``."""
        spare = deep + max(_LEAST_SPARE, int(deep * _SPARE))
        depth, rescored = self._depth(deep, num_allowed), self.lists.rescored
        if depth is None or depth not in rescored:
            return spare
        # Among the allowed items codes lose what they lose among all to the same place of the ranking.
        ratios = (rescored[each] / each for each in self._depths if deep <= each <= depth)
        return max(spare, int(np.ceil(deep * max(ratios))))

    def is_quicker(self, k: int, num_allowed: int) -> bool:
        """Return whether a query alone is answered more quickly than by exact search.

        Counts and constant costs decide, so a busy machine has the same answer.

        Args:
            k: Items wanted.
            num_allowed: Items that are allowed.
        """
        probes = self._probes(depth_of(k), num_allowed)
        share = _SCANNING * probes / len(self.lists)
        of_rows = len(self.lists.list_of) * self._width / _MEASURED_WIDTH
        return probes > 0 and _ASKING + share * of_rows < _SCORING * of_rows

    def _search_one(
        self, query: Float32s, k: int, fetched: int, probes: int, depth: int
    ) -> Found | None:
        """Return what ``_search_lists`` finds for one query among all items; None where it is not sure.

        A query alone is the usual case of a server. Calls of NumPy take most of its time, so they are few.
        """
        length = length_of(query)
        rows, scanned = self._scan.search_one(query, length, probes, fetched)
        scores = self._scan.scored_again(query, self._vectors, rows)
        is_all = rows[-1] < 0  # the lists hold no more
        if is_all:
            rows[rows < 0] = PADDING_ROW
        best, of_best = best_of(rows, scores, k)
        is_sure = is_all or self._scan.is_sure(scanned, depth, of_best[-1], length)
        if not is_sure or best[-1] == PADDING_ROW:
            return None
        return Found(best.astype(np.int32)[None], of_best[None])

    def _search_lists(
        self,
        queries: Float32s,
        k: int,
        exclude: Histories,
        allowed: Mask | None,
        fetched: int,
        probes: int,
        depth: int,
    ) -> tuple[Found, Bools]:
        """Return what is found, and for which queries no other item of the lists is better: ``(Q,)``.

        Args:
            queries: ``(Q, dim)``.
            k: At least 1.
            exclude: ``Q`` sets of rows.
            allowed: ``(num_item_rows,)``; None allows all.
            fetched: Items to score again, above ``k``.
            probes: Lists to search.
            depth: Place that the answer reaches, excluded items included; below ``fetched``.
        """
        lengths = lengths_of(queries)
        rows, scanned = self._candidates(queries, lengths, fetched, allowed, probes)
        scores = self._scan.scored_again(queries, self._vectors, rows)
        is_all = rows[:, -1] < 0  # the lists hold no more
        if np.count_nonzero(is_all):
            rows[rows < 0] = PADDING_ROW
        if len(exclude.item_rows):
            first = np.arange(len(rows))[:, None] * len(self._vectors)
            sets = np.repeat(first, exclude.lengths) + exclude.item_rows
            is_out = np.isin(rows + first, sets)
            rows[is_out], scores[is_out] = PADDING_ROW, -np.inf
        found = best_rows(rows, scores, k)
        is_sure = self._scan.is_sure(scanned, depth, found.scores[:, -1], lengths)
        return found, is_all | is_sure

    def _candidates(
        self, queries: Float32s, lengths: Float32s, most: int, allowed: Mask | None, probes: int
    ) -> tuple[Ints, Float32s]:
        """Return the rows that score best in the scan, best first, and their scores there.

        Returns:
            ``(Q, most)`` rows, -1 where the lists hold fewer; ``(Q, most)`` scores.
        """
        is_used = None
        if allowed is not None and np.count_nonzero(allowed) < _DENSE * len(allowed):
            lists_allowed = self.lists.list_of[allowed[FIRST_ROW:]]
            is_used = np.bincount(lists_allowed, minlength=len(self.lists)) > 0
        return self._scan.search(queries, lengths, probes, most, allowed, is_used)


def approximate_index(item_vectors: Tensor, lists: Lists | None) -> ExactIndex:
    """Return the index of a divided catalogue; without faiss, an exact one, with a warning.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32; on another device than the CPU search is exact.
        lists: Of the catalogue, tuned; None for an exact index.
    """
    if lists is not None and item_vectors.device.type == "cpu":
        try:
            return ApproximateIndex(item_vectors, lists)
        except MissingExtraError as error:
            warnings.warn(f"Search is exact, and slower: {error}", stacklevel=2)
    return exact_index(item_vectors, reserved_rows=FIRST_ROW)
