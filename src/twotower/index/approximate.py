"""Approximate search: only the parts of the catalogue where a query's best items are likely to be."""

import warnings
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Bools, Float32s, Ints, Rows
from twotower.errors import ArgumentError, MissingExtraError
from twotower.extras import library
from twotower.histories import Histories
from twotower.index.base import Found, Mask, nothing_found
from twotower.index.exact import ExactIndex
from twotower.index.topk import best_of
from twotower.index.two_pass import exact_index
from twotower.vocab import FIRST_ROW, PADDING_ROW

DEPTHS = (100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""How deep a ranking is asked for, in steps: what falls into one step is searched alike."""
_DEEP = 1_000
"""Depths above it are tuned on the first ``_FEW_QUERIES`` queries: each takes a long ranking."""
_FEW_QUERIES = 128
_SPREADS = 2.0
"""Standard deviations that a list's best item is taken to lie above its mean. Measured with 200,000 items:
at a recall of .99 it takes 40 % fewer items than 0, and 1 and 3 take nearly as few."""
_SURE = 1.645
"""Standard errors from a mean to the lower end of its one-sided 95 % interval."""
_LEAST_SPARE, _SPARE = 16, 1 / 16
"""Items that are scored again beyond those asked for: so many, or this share of the depth if that is more.
Ordinary vectors need no more; where items are nearly equal, more are taken (``_MORE``)."""
_MORE = 8
"""How many times as many items are scored again where rounding may have left one out."""
_MOST_FETCHED = 2**16
"""Items of a query that are scored again at most; where that is too few, the query is searched exactly."""
_SCORING = 3.0
"""Nanoseconds that exact search in two passes, the fastest that there is, takes for a row. Measured on one
thread, one query at a time, with 200 thousand and a million items, 64 wide (``benchmarks/index.py``)."""
_MEASURED_WIDTH = 64
"""Width of the vectors that the costs of a row were measured with; they grow with it."""
_ITERATIONS, _POINTS_A_LIST = 10, 64
_DENSE = 0.9
"""Share of allowed items from which on no list is taken to be without any."""
_ASKING, _MASKING, _SCANNING, _GATHERING = 2e5, 2.0, 5.0, 120.0
"""What a query costs, a row that may be allowed or not, a row of a list that is searched, and an allowed
row that is gathered to be scored exactly: nanoseconds. Measured with 200 thousand and a million items, 64
wide, the last one between a query alone (90 to 340) and batches of 64 (10)."""
_FLOAT32_STEP = 2.0**-23
_CHUNK_NUMBERS = 2**22
"""Numbers of fetched vectors held at once: 16 MB."""


@dataclass(frozen=True, eq=False)
class Lists:
    """How a catalogue is divided, and how much of it is searched: all that is kept of an index.

    Args:
        centres: ``(L, dim)`` float32 mean of each list's vectors.
        spreads: ``(L,)`` float32 standard deviation of a coordinate about it.
        list_of: ``(I,)`` int32 list of each item; line ``p`` is row ``p + FIRST_ROW``.
        probes: By depth the number of lists that are searched; deeper rankings are searched exactly.
    """

    centres: Tensor
    spreads: Tensor
    list_of: Rows
    probes: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def _bounds(self) -> Tensor:
        return torch.cat([self.centres, _SPREADS * self.spreads[:, None]], dim=1)

    def scores(self, query_vectors: Tensor) -> Tensor:
        """Return what the best item of each list is likely to score: ``(Q, L)`` float32."""
        lengths = query_vectors.norm(dim=1, keepdim=True)
        return torch.cat([query_vectors, lengths], dim=1) @ self._bounds.T

    def over(self, item_vectors: Tensor) -> "Lists":
        """Return the lists of a catalogue that has grown at its end, with the new items in them."""
        new = item_vectors[FIRST_ROW + len(self.list_of) :]
        nearest = _nearest(self.centres, new)
        return replace(self, list_of=np.concatenate([self.list_of, nearest]))

    def holding(self, vectors: Tensor) -> "Lists":
        """Return the same lists with other items in them: ``(I, dim)``."""
        return replace(self, list_of=_nearest(self.centres, vectors))


def divided(item_vectors: Tensor, num_lists: int | None = None, *, seed: int = 0) -> Lists:
    """Return a catalogue in lists of items that are near each other, by k-means, untuned.

    Distances are those of the vectors as they are, lengths included: among inner products a list of long
    vectors is likely to hold the best item and one of short ones is not, and lists of mere directions,
    as faiss makes them for inner products, mix the two.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU; the reserved rows are left out.
        num_lists: At least 1; about twice the root of the number of items where None.
        seed: Of what k-means starts from; equal seeds give equal lists.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
        ValueError: There is no item.
    """
    vectors = item_vectors[FIRST_ROW:].contiguous()
    if not len(vectors):
        raise ArgumentError("item_vectors must hold an item, got none.")
    if num_lists is None:
        num_lists = 2 ** round(np.log2(2 * len(vectors) ** 0.5))
    num_lists = min(num_lists, len(vectors))
    faiss = _faiss()
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed = _ITERATIONS, seed
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, _POINTS_A_LIST
    clustering = faiss.Clustering(vectors.shape[1], num_lists, settings)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in another order would be other lists
    try:
        clustering.train(vectors.numpy(), faiss.IndexFlatL2(vectors.shape[1]))
    finally:
        faiss.omp_set_num_threads(before)
    found = faiss.vector_to_array(clustering.centroids).reshape(num_lists, -1)
    nearest = _nearest(torch.from_numpy(found.copy()), vectors)
    _, list_of = np.unique(nearest, return_inverse=True)  # no list is empty
    members = torch.from_numpy(list_of.astype(np.int64))
    counts = torch.bincount(members)
    centres = torch.zeros(len(counts), vectors.shape[1]).index_add_(0, members, vectors)
    centres /= counts[:, None]
    squares = torch.zeros(len(counts))
    for start in range(0, len(vectors), 2**16):
        here = slice(start, start + 2**16)
        far = (vectors[here] - centres[members[here]]).square().mean(dim=1)
        squares.index_add_(0, members[here], far)
    return Lists(centres, (squares / counts).sqrt(), list_of.astype(np.int32), {})


def tuned(lists: Lists, item_vectors: Tensor, query_vectors: Tensor, recall: float) -> Lists:
    """Return lists with the fewest probes that reach a recall at each depth.

    It is the mean over these queries that must reach it, at the lower end of its one-sided 95 % interval.

    Args:
        lists: Of the catalogue.
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU.
        query_vectors: ``(Q, dim)`` float32, at least 1, such as will be asked.
        recall: In (0, 1].
    """
    most = min(DEPTHS[-1], max(DEPTHS[0], len(lists.list_of) // 20))
    depths = [depth for depth in DEPTHS if depth <= most]
    probes: dict[int, int] = {}
    exact = ExactIndex(item_vectors, reserved_rows=FIRST_ROW)
    for part, queries in (
        ([d for d in depths if d <= _DEEP], query_vectors),
        ([d for d in depths if d > _DEEP], query_vectors[:_FEW_QUERIES]),
    ):
        if part:
            ranks = _ranks(lists, exact, queries, part[-1])
            probes |= {depth: _fewest(ranks[:, :depth], len(lists), recall) for depth in part}
    # Fewer queries must not ask for fewer lists.
    rising = np.maximum.accumulate([probes[depth] for depth in depths]).tolist()
    return replace(lists, probes=dict(zip(depths, rising, strict=True)))


def _ranks(lists: Lists, exact: ExactIndex, queries: Tensor, depth: int) -> Ints:
    """Return at which place of a query's lists each of its best items stands; ``L`` where there is none."""
    found = exact.search(queries, depth)
    order = lists.scores(queries).argsort(dim=1, descending=True, stable=True).numpy()
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(len(lists))[None], axis=1)
    is_item = found.item_rows != PADDING_ROW
    lines = lists.list_of[np.maximum(found.item_rows - FIRST_ROW, 0)]
    return np.where(is_item, np.take_along_axis(places, lines, axis=1), len(lists))


def _fewest(ranks: Ints, num_lists: int, recall: float) -> int:
    """Return the fewest lists that surely hold a share ``recall`` of the best items of a query."""
    hits = np.stack([np.bincount(line, minlength=num_lists + 1)[:num_lists] for line in ranks])
    shares = hits.cumsum(axis=1) / np.maximum(1, hits.sum(axis=1, keepdims=True))
    lower = shares.mean(axis=0) - _SURE * shares.std(axis=0) / len(shares) ** 0.5
    lower[-1] = 1.0
    return int(np.argmax(lower >= recall)) + 1


class ApproximateIndex(ExactIndex):
    """Searches the lists that are likely to hold the best items.

    Scores are exact, and items of equal score are ordered by row; what may be missing are items of lists
    that were not searched. There are always ``k`` where so many exist. How many lists are searched depends
    on the query alone: on ``k``, on what is excluded, and on the share of items that is allowed, all three
    of which say how deep into the ranking of the whole catalogue the answer reaches. Few allowed items, and
    what is deeper than was tuned, are searched exactly.

    Lists are scanned in half precision, which cannot tell near-duplicates apart. By Cauchy and Schwarz a
    score is off by at most the query's length times what rounding took from an item. The best items of the
    scan are scored again in float32, and more of them until the last answer is better than any item that is
    left out can be: so nothing is lost to rounding.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU; the reserved rows are never found.
        lists: Of the catalogue, tuned.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
        ValueError: The lists are of another catalogue.

    Source: Jégou, Douze and Schmid, PAMI 2011, section 4 (inverted lists), scanned by faiss. Differs: lists
        are of vectors with their lengths, and ranked by their means and spreads; nothing is quantised but
        to half precision.
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
        self._width = dim
        self._depths = sorted(lists.probes)
        self._faiss = _faiss()
        self._scanned = self._filled(item_vectors[FIRST_ROW:])

    def _filled(self, vectors: Tensor) -> Any:
        faiss, dim = self._faiss, vectors.shape[1]
        coarse = faiss.IndexFlatL2(dim)  # only counted: we choose the lists
        coarse.add(np.ascontiguousarray(self.lists.centres.numpy()))
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, len(self.lists), kind, metric, False)
        index.own_fields = False
        self._coarse = coarse  # which the index points to
        index.is_trained = True  # half precision has nothing to learn
        peak = float(vectors.abs().max()) if len(vectors) else 1.0
        self._unit = peak or 1.0
        lost = longest = 0.0
        for start in range(0, len(vectors), 2**16):
            # Neither too large for half precision nor too small: only their order counts.
            scaled = (vectors[start : start + 2**16] / self._unit).contiguous()
            lost = max(lost, float((scaled - scaled.half().float()).norm(dim=1).max()))
            longest = max(longest, float(scaled.norm(dim=1).max()))
            part = scaled.numpy()
            rows = np.arange(start, start + len(part), dtype=np.int64) + FIRST_ROW
            of_lists = self.lists.list_of[start : start + len(part)].astype(np.int64)
            pointers = (faiss.swig_ptr(each) for each in (part, rows, of_lists))
            index.add_core(len(part), *pointers)
        # Of a query of length 1: by rounding, and by the order of two sums in float32.
        self._doubt = lost + dim * _FLOAT32_STEP * longest
        return index

    def over(self, item_vectors: Tensor) -> "ApproximateIndex":
        """Return the index of a catalogue that has grown at its end, in the same lists."""
        return ApproximateIndex(item_vectors, self.lists.over(item_vectors))

    def _answer(self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None) -> Found:
        if k < depth_of(k):  # what is asked to one depth is answered alike
            deeper = self._answer(queries, depth_of(k), exclude, allowed)
            return Found(deeper.item_rows[:, :k], deeper.scores[:, :k])
        num_queries, num_items = len(queries), len(self.lists.list_of)
        num_allowed = num_items if allowed is None else int(np.count_nonzero(allowed[FIRST_ROW:]))
        mask = allowed if num_allowed < num_items else None
        depths = [depth_of(depth_of(k) + left_out) for left_out in exclude.lengths.tolist()]
        deep = np.array(depths, np.int64)
        rows, best = nothing_found(num_queries, k, FIRST_ROW)
        is_sure = np.zeros(num_queries, np.bool_)  # that rounding has left nothing out
        for depth in np.unique(deep).tolist():
            probes = self._probes(depth, num_allowed)
            fetched = depth + max(_LEAST_SPARE, int(depth * _SPARE))
            rest = np.flatnonzero(deep == depth)[: None if probes else 0]
            while len(rest) and fetched <= _MOST_FETCHED:
                size = max(1, _CHUNK_NUMBERS // (fetched * self._width))
                for here in (rest[start : start + size] for start in range(0, len(rest), size)):
                    part = queries if len(here) == num_queries else queries[torch.from_numpy(here)]
                    (rows[here], best[here]), is_sure[here] = self._search_lists(
                        part, k, exclude.take(here), mask, fetched, probes
                    )
                rest, fetched = rest[~is_sure[rest]], _MORE * fetched
        again = np.flatnonzero(~is_sure | (rows[:, -1] == PADDING_ROW))
        if len(again):
            vectors, sets = queries[torch.from_numpy(again)], exclude.take(again)
            rows[again], best[again] = super()._answer(vectors, k, sets, allowed)
        return Found(rows, best)

    def _probes(self, deep: int, num_allowed: int) -> int:
        """Return how many lists to search for a query; 0 where it is searched exactly.

        The rule is of one query: what is asked beside it must not change its answer.

        Args:
            deep: Place in the ranking of the allowed items that the answer reaches.
            num_allowed: Items that are allowed.
        """
        num_items = len(self.lists.list_of)
        if not num_allowed:
            return 0
        place = bisect_left(self._depths, deep * num_items / num_allowed)
        if place == len(self._depths):
            return 0
        probes = self.lists.probes[self._depths[place]]
        if num_allowed == num_items:
            return probes
        scanned = _SCANNING * num_items * probes / len(self.lists)
        is_quicker = _ASKING + _MASKING * num_items + scanned < _GATHERING * num_allowed
        return probes if is_quicker else 0

    def is_quicker(self, k: int, num_allowed: int) -> bool:
        """Return whether a query alone is answered more quickly than by exact search.

        It is told from counts, by costs that were measured once: a busy machine has the same answer.

        Args:
            k: Items that are asked for.
            num_allowed: Items that are allowed.
        """
        probes = self._probes(depth_of(k), num_allowed)
        share = _SCANNING * probes / len(self.lists)
        of_rows = len(self.lists.list_of) * self._width / _MEASURED_WIDTH
        return probes > 0 and _ASKING + share * of_rows < _SCORING * of_rows

    def _search_lists(
        self,
        queries: Tensor,
        k: int,
        exclude: Histories,
        allowed: Mask | None,
        fetched: int,
        probes: int,
    ) -> tuple[Found, Bools]:
        """Return what is found, and for which queries no other item of the lists is better: ``(Q,)``.

        Args:
            queries: ``(Q, dim)``.
            k: At least 1.
            exclude: ``Q`` sets of rows.
            allowed: ``(num_item_rows,)``; None allows all.
            fetched: Items to score again, above ``k``.
            probes: Lists to search.
        """
        rows, least = self._candidates(queries, fetched, allowed, probes)
        is_all = rows[:, -1] == PADDING_ROW  # the lists hold no more
        rows.sort(axis=1)  # equal scores are ordered by row
        # Not by a product of matrices, in which the scores of twins may differ in the last bit.
        scores = np.einsum("qfd,qd->qf", self.item_vectors.numpy()[rows], queries.numpy())
        is_out = rows == PADDING_ROW
        if len(exclude.item_rows):
            first = np.arange(len(rows))[:, None] * len(self.item_vectors)
            sets = np.repeat(first, exclude.lengths) + exclude.item_rows
            is_out |= np.isin(rows + first, sets)
        scores[is_out] = -np.inf
        found = best_of(torch.from_numpy(scores), k, FIRST_ROW, torch.from_numpy(rows))
        doubt = self._doubt * queries.norm(dim=1).numpy()
        return found, is_all | (found.scores[:, -1] / self._unit > least + doubt)

    def _candidates(
        self, queries: Tensor, most: int, allowed: Mask | None, probes: int
    ) -> tuple[Ints, Float32s]:
        """Return the rows that score best in half precision, best first, and the least of their scores.

        Returns:
            ``(Q, most)`` rows, ``PADDING_ROW`` where the lists hold fewer; ``(Q,)`` scores in ``_unit``.
        """
        faiss, bounds = self._faiss, self.lists.scores(queries)
        selector = None
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            if np.count_nonzero(allowed) < _DENSE * len(allowed):
                lists_allowed = self.lists.list_of[allowed[FIRST_ROW:]]
                is_used = np.bincount(lists_allowed, minlength=len(self.lists)) > 0
                bounds[:, torch.from_numpy(~is_used)] = -torch.inf
        values, chosen = bounds.topk(probes, dim=1, sorted=False)
        lists, coarse = chosen.numpy(), values.numpy()
        lists[coarse == -np.inf] = -1
        scores = np.empty((len(queries), most), np.float32)
        rows = np.empty((len(queries), most), np.int64)
        asked = np.ascontiguousarray(queries.numpy())
        faiss.omp_set_num_threads(torch.get_num_threads())
        settings = faiss.IVFSearchParameters(nprobe=probes, sel=selector)
        vectors, *places = map(faiss.swig_ptr, (asked, lists, coarse, scores, rows))
        self._scanned.search_preassigned_c(len(asked), vectors, most, *places, False, settings)
        rows[rows < 0] = PADDING_ROW
        return rows, scores[:, -1]


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


def depth_of(k: int) -> int:
    """Return the depth that ``k`` is searched at: what is asked to one depth is answered alike."""
    return next((depth for depth in DEPTHS if depth >= k), k)


def _nearest(centres: Tensor, vectors: Tensor) -> Rows:
    """Return the centre that is nearest to each vector, by Euclidean distance: ``(n,)``."""
    half = centres.square().sum(dim=1) / 2
    parts = [(half - part @ centres.T).argmin(dim=1) for part in torch.split(vectors, 2**13)]
    return torch.cat(parts).numpy().astype(np.int32)


def _faiss() -> ModuleType:
    return library("faiss", wanted_by="approximate search", extra="ann")
