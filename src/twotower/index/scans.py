"""What faiss scans of the lists of an approximate index: vectors in half precision, or 4-bit codes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Bools, Float32s, Ints
from twotower.index.base import Found
from twotower.index.lists import NUM_LEVELS, SPREADS, Lists, faiss_library
from twotower.vocab import FIRST_ROW

Numbers: TypeAlias = Float32s | np.float32
"""A number of each query, or that of one."""

LEAST_CODED = 1_000
"""Items from which levels can be learnt."""
_SAMPLE = 20_000
"""Items that levels are learnt from, at most: faiss itself takes 256 points a level, 4,096."""
_FLOAT32_STEP = 2.0**-23
_BLOCK = 32
"""Items of a list whose codes faiss scans at once."""
_CHUNK = 2**16
_BYTES_OF_AN_ID = 8


class Scan(ABC):
    """The items of lists in a form that faiss scans quickly.

    Args:
        vectors: ``(I, dim)`` float32 on the CPU.
        lists: Of these items.
    """

    bytes_per_item: float
    """Memory beside the vectors themselves, with the rows of the items."""

    def __init__(self, vectors: Tensor, lists: Lists) -> None:
        self._faiss = faiss_library()
        self._list_of = lists.list_of
        self._num_lists, self._dim = lists.centres.shape
        # Neither too large for half precision nor too small: only the order of scores counts.
        self._unit = (float(vectors.abs().max()) if len(vectors) else 1.0) or 1.0
        self._means = np.ascontiguousarray((lists.centres / self._unit).numpy())
        # One product gives what the best item of each list is likely to score: see ``Lists.scores``.
        bounds = torch.cat([lists.centres, SPREADS * lists.spreads[:, None]], dim=1) / self._unit
        self._bounds = np.ascontiguousarray(bounds.T.numpy())
        self._coarse = self._faiss.IndexFlatL2(self._dim)  # only counted: we choose the lists
        self._coarse.add(self._means)
        self._settings: dict[int, Any] = {}
        self._index = self._filled(vectors, lists)

    @abstractmethod
    def _filled(self, vectors: Tensor, lists: Lists) -> Any:
        """Return faiss' index with the items in it."""

    @abstractmethod
    def is_sure(
        self, scores: Float32s, depth: int, last: Numbers, lengths: Numbers
    ) -> Bools | np.bool_:
        """Return for which queries the scan has left nothing better out: ``(Q,)``, or of one query.

        Args:
            scores: ``(Q, most)`` of the scan, best first; or ``(most,)`` of one query.
            depth: Items wanted.
            last: ``(Q,)`` the least exact score of an answer, or one number.
            lengths: ``(Q,)`` of the queries, or one number.
        """

    def _add(self, index: Any, vectors: Tensor) -> Iterator[Tensor]:
        """Add the items to an index of faiss; yield them in ``_unit``, in parts."""
        for start in range(0, len(vectors), _CHUNK):
            part = (vectors[start : start + _CHUNK] / self._unit).contiguous()
            rows = np.arange(start, start + len(part), dtype=np.int64) + FIRST_ROW
            of_lists = self._list_of[start : start + len(part)].astype(np.int64)
            pointers = (self._faiss.swig_ptr(each) for each in (part.numpy(), rows, of_lists))
            index.add_core(len(part), *pointers)
            yield part

    def search(
        self,
        queries: Float32s,
        lengths: Float32s,
        probes: int,
        most: int,
        allowed: Bools | None = None,
        is_used: Bools | None = None,
    ) -> tuple[Ints, Float32s]:
        """Return the rows that score best in the first lists of each query, best first.

        Args:
            queries: ``(Q, dim)``.
            lengths: ``(Q,)`` of the queries.
            probes: Lists to scan.
            most: Items to return.
            allowed: ``(num_item_rows,)``; None allows all.
            is_used: ``(L,)`` lists that hold an allowed item; None for all.

        Returns:
            ``(Q, most)`` rows, -1 where the lists hold fewer; ``(Q, most)`` scores.
        """
        faiss = self._faiss
        lists, bounds = self._first(queries, lengths, probes, is_used)
        settings = self._settings_of(probes)
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            settings = faiss.IVFSearchParameters(nprobe=probes, sel=selector)
        scores = np.empty((len(queries), most), np.float32)
        rows = np.empty((len(queries), most), np.int64)
        of_means = self._of_means(lists, bounds, lengths[:, None])
        if is_used is not None:  # where there is no list, an infinite number would spoil a scale
            np.copyto(of_means, of_means[:, :1], where=lists < 0)
        given = (queries, lists, of_means, scores, rows)
        asked, *places = map(faiss.swig_ptr, given)
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._index.search_preassigned_c(len(queries), asked, most, *places, False, settings)
        return rows, scores

    def search_one(
        self, query: Float32s, length: np.float32, probes: int, most: int
    ) -> tuple[Ints, Float32s]:
        """Return what ``search`` finds for one query, with few operations of NumPy.

        Args:
            query: ``(dim,)``, contiguous.
            length: Of the query.
            probes: Lists to scan.
            most: Items to return.

        Returns:
            ``(most,)`` rows, -1 where the lists hold fewer; ``(most,)`` scores.
        """
        lists, bounds = self._first_of(query, length, probes)
        scores, rows = np.empty(most, np.float32), np.empty(most, np.int64)
        given = (query, lists, self._of_means(lists, bounds, length), scores, rows)
        asked, *places = map(self._faiss.swig_ptr, given)
        settings = self._settings_of(probes)
        self._index.search_preassigned_c(1, asked, most, *places, False, settings)
        return rows, scores

    def scored_again(self, queries: Float32s, item_vectors: Float32s, rows: Ints) -> Float32s:
        """Return the exact scores of rows, each by itself, so that twins score alike: like ``rows``.

        Args:
            queries: ``(Q, dim)``, contiguous; or one query, ``(dim,)``.
            item_vectors: ``(num_item_rows, dim)``, contiguous.
            rows: ``(Q, n)`` int64, contiguous, -1 for no item, which scores ``-inf``; or ``(n,)``.
        """
        scores = np.empty(rows.shape, np.float32)
        given = map(self._faiss.swig_ptr, (scores, queries, item_vectors, rows))
        num = len(rows) if rows.ndim == 2 else 1
        self._faiss.fvec_inner_products_by_idx(*given, self._dim, num, rows.shape[-1])
        return scores

    def _settings_of(self, probes: int) -> Any:
        """Return faiss' settings of a scan of all items."""
        settings = self._settings.get(probes)
        if settings is None:
            settings = self._settings[probes] = self._faiss.IVFSearchParameters(nprobe=probes)
        return settings

    def _of_means(
        self,
        lists: Ints,  # noqa: ARG002
        bounds: Float32s,
        lengths: Numbers,  # noqa: ARG002
    ) -> Float32s:
        """Return the score that faiss starts each list with, like ``bounds``.

        Args:
            lists: ``(..., probes)``.
            bounds: ``(..., probes)`` of these lists.
            lengths: Of the queries, to be broadcast.
        """
        return bounds

    def _first(
        self, queries: Float32s, lengths: Float32s, probes: int, is_used: Bools | None
    ) -> tuple[Ints, Float32s]:
        """Return the lists of the largest bounds, largest first, -1 where too few are used."""
        lists = np.empty((len(queries), probes), np.int64)
        bounds = np.empty((len(queries), probes), np.float32)
        for place, (query, length) in enumerate(zip(queries, lengths, strict=True)):
            lists[place], bounds[place] = self._first_of(query, length, probes, is_used)
        if is_used is not None:
            lists[bounds == -np.inf] = -1
        return lists, bounds

    def _first_of(
        self, query: Float32s, length: np.float32, probes: int, is_used: Bools | None = None
    ) -> tuple[Ints, Float32s]:
        """Return the lists of one query and their bounds, ``-inf`` where too few are used.

        A query is alone: a product of matrices would round otherwise than that of a query alone.
        """
        with_length = np.empty(self._dim + 1, np.float32)
        with_length[:-1], with_length[-1] = query, length
        line = with_length.dot(self._bounds)
        if is_used is not None:
            line[~is_used] = -np.inf
        first = self._num_lists - probes
        chosen = line.argpartition(first)[first:] if first else np.arange(probes)
        values = line[chosen]
        order = values.argsort()[::-1]  # best first: the threshold of faiss' scan rises early
        return chosen[order], values[order]


class HalfPrecision(Scan):
    """Vectors of 16 bits a number, and a bound of what rounding changes."""

    def _filled(self, vectors: Tensor, lists: Lists) -> Any:  # noqa: ARG002
        faiss = self._faiss
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(
            self._coarse, self._dim, self._num_lists, kind, metric, False
        )
        index.own_fields = False
        index.is_trained = True  # half precision has nothing to learn
        lost = longest = 0.0
        for part in self._add(index, vectors):
            lost = max(lost, float((part - part.half().float()).norm(dim=1).max()))
            longest = max(longest, float(part.norm(dim=1).max()))
        # Of a query of length 1: by rounding, and by the order of two sums in float32.
        self._doubt = lost + self._dim * _FLOAT32_STEP * longest
        self.bytes_per_item = 2.0 * self._dim + _BYTES_OF_AN_ID
        return index

    def is_sure(
        self,
        scores: Float32s,
        depth: int,  # noqa: ARG002
        last: Numbers,
        lengths: Numbers,
    ) -> Bools | np.bool_:
        """Return whether no item that was left out can beat the last answer, by Cauchy and Schwarz."""
        sure: Bools = last / self._unit > scores[..., -1] + self._doubt * lengths
        return sure


class FourBits(Scan):
    """Codes of 4 bits a number: which of 16 levels is nearest to its distance from the list's mean.

    Source: André, Kermarrec and Le Scouarnec, VLDB 2015 (scans of codes in registers), by faiss. Differs:
        each coordinate is a part of its own.
    """

    def _filled(self, vectors: Tensor, lists: Lists) -> Any:
        assert lists.levels is not None
        faiss, dim = self._faiss, self._dim
        codes = faiss.IndexIVFPQ(
            self._coarse, dim, self._num_lists, dim, 4, faiss.METRIC_INNER_PRODUCT
        )
        codes.own_fields = False
        codes.by_residual = codes.is_trained = True
        levels = np.ascontiguousarray((lists.levels / self._unit).numpy()).ravel()
        faiss.copy_array_to_vector(levels, codes.pq.centroids)
        for _ in self._add(codes, vectors):
            pass
        index = faiss.IndexIVFPQFastScan(codes, _BLOCK)
        index.own_fields = False
        index.implem = 11  # each query by itself: others change neither its answer nor its ties
        self._reaches = self._bounds[-1].copy()  # how far the best of a list lies above its mean
        blocks = -(-np.bincount(self._list_of, minlength=self._num_lists) // _BLOCK)
        code_bytes = _BLOCK * -(-dim // 2) * int(blocks.sum())
        self.bytes_per_item = code_bytes / max(1, len(vectors)) + _BYTES_OF_AN_ID
        return index

    def _of_means(self, lists: Ints, bounds: Float32s, lengths: Numbers) -> Float32s:
        # The products with the means, to which the scan adds those with the rest of each item.
        products: Float32s = bounds - lengths * self._reaches[lists]
        return products

    def is_sure(
        self,
        scores: Float32s,
        depth: int,
        last: Numbers,  # noqa: ARG002
        lengths: Numbers,  # noqa: ARG002
    ) -> Bools | np.bool_:
        """Return whether the codes tell the item at the depth from the last one of the scan.

        Where they do not, near-duplicates are about, and some may have been left out. What rounding loses
        otherwise is part of the recall that was tuned.
        """
        sure: Bools = scores[..., depth - 1] > scores[..., -1]
        return sure


def scan_of(vectors: Tensor, lists: Lists) -> Scan:
    """Return the scan that lists were tuned for.

    Args:
        vectors: ``(I, dim)`` float32 on the CPU.
        lists: Of these items.
    """
    return (HalfPrecision if lists.levels is None else FourBits)(vectors, lists)


def levels_of(vectors: Tensor, lists: Lists) -> Tensor | None:
    """Return the levels of 4-bit codes for items in lists, ``(dim, 16)``; None where they make no sense.

    Args:
        vectors: ``(I, dim)`` float32 on the CPU.
        lists: Of these items.
    """
    if len(vectors) < LEAST_CODED:
        return None
    step = -(-len(vectors) // _SAMPLE)
    of_lists = torch.from_numpy(lists.list_of[::step].astype(np.int64))
    rest = vectors[::step] - lists.centres[of_lists]
    unit = float(rest.abs().max())
    if not 0 < unit < np.inf:
        return None  # every item is its list's mean
    faiss, dim = faiss_library(), vectors.shape[1]
    quantizer = faiss.ProductQuantizer(dim, dim, 4)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in another order would be other levels
    try:
        quantizer.train(np.ascontiguousarray((rest / unit).numpy()))
    finally:
        faiss.omp_set_num_threads(before)
    found = faiss.vector_to_array(quantizer.centroids).reshape(dim, NUM_LEVELS)
    return torch.from_numpy(np.sort(found, axis=1)) * unit


def lengths_of(queries: Float32s) -> Float32s:
    """Return the lengths of ``(Q, dim)`` queries, each computed by itself: ``(Q,)``."""
    return np.array([length_of(query) for query in queries], np.float32)


def length_of(query: Float32s) -> np.float32:
    """Return the length of one query, ``(dim,)``, as ``lengths_of`` does."""
    return np.float32(math.sqrt(query.dot(query)))


def best_rows(rows: Ints, scores: Float32s, k: int) -> Found:
    """Return the ``k`` best of scored rows, best first, equal scores by row.

    Args:
        rows: ``(Q, n)`` int64; ``PADDING_ROW`` where there is no item, with ``-inf``.
        scores: ``(Q, n)`` float32 without NaN.
        k: At least 1, at most ``n``.
    """
    found = Found(np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32))
    for place in range(len(rows)):
        found.item_rows[place], found.scores[place] = best_of(rows[place], scores[place], k)
    return found


def best_of(rows: Ints, scores: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Return what ``best_rows`` does for one query, of ``(n,)`` rows and scores.

    It takes few operations of NumPy: calls take longer than the sort.
    """
    order = (-scores).argsort()[: k + 1]
    best = scores[order]
    if np.count_nonzero(best[1:] == best[:-1]):  # twins, of which some may be left out
        order = np.lexsort((rows, -scores))
        best = scores[order]
    return rows[order[:k]], best[:k]
