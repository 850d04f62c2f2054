"""How much of its lists an index searches, and by which scan, for the recall that is wanted."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from twotower.arrays import Bools, Floats, Ints, Rows
from twotower.index.exact import ExactIndex
from twotower.index.lists import DEPTHS, Lists
from twotower.index.scans import FourBits, Scan, lengths_of, levels_of
from twotower.vocab import FIRST_ROW, PADDING_ROW

_DEEP = 1_000
"""Depths above it are tuned on the first ``_FEW_QUERIES`` queries: each takes a long ranking."""
_FEW_QUERIES = 128
_SURE = 1.645
"""Standard errors from a mean to the lower end of its one-sided 95 % interval."""
_LEFT_TO_CODES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75)
"""Shares of the recall that may be missed which the lists leave to the codes: each asks for some lists."""
_RESCORED = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
"""How many items are scored again after codes, in depths."""
_PROBING, _RESCORING, _HALF, _CODED = 90.0, 120.0, 14.0, 1.7
"""What a list costs that is scanned, an item that is scored again, and a scanned item in half precision and
by codes, 64 wide: nanoseconds. Measured with 200 thousand and a million items, one query at a time
(``benchmarks/index.py``)."""
_SPARE = 1.16
"""Items that are scored again after half precision, in depths, at a depth of 100."""
_MEASURED_WIDTH = 64
_CHUNK = 64


def tuned(lists: Lists, item_vectors: Tensor, query_vectors: Tensor, recall: float) -> Lists:
    """Return lists with the least work that reaches a recall at each depth.

    The mean over these queries must reach it at the lower end of its one-sided 95 % interval. The work at
    the first depth decides between a scan in half precision and one by 4-bit codes. It is computed from
    counts (lists, their items, rescored items) and constant costs, so a busy machine decides alike.

    Args:
        lists: Of the catalogue.
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU.
        query_vectors: ``(Q, dim)`` float32, at least 1, like those that will come.
        recall: In (0, 1].
    """
    most = min(DEPTHS[-1], max(DEPTHS[0], len(lists.list_of) // 20))
    depths = [depth for depth in DEPTHS if depth <= most]
    best = [_Best(lists, item_vectors, query_vectors, [d for d in depths if d <= _DEEP])]
    if most > _DEEP:
        few = query_vectors[:_FEW_QUERIES]
        best.append(_Best(lists, item_vectors, few, [d for d in depths if d > _DEEP]))
    of_depth = [(depth, each) for each in best for depth in each.depths]
    probes = [each.fewest(depth, recall) for depth, each in of_depth]
    # Fewer queries must not ask for fewer lists.
    in_half = replace(lists, probes=_rising(depths, probes), levels=None, rescored={})
    coded = _coded(lists, item_vectors, of_depth, recall, best[0].cost(depths[0], probes[0]))
    return coded or in_half


def _coded(
    lists: Lists,
    item_vectors: Tensor,
    of_depth: "list[tuple[int, _Best]]",
    recall: float,
    cost_in_half: float,
) -> Lists | None:
    """Return lists that are scanned by codes; None where that is more work, or misses the recall."""
    vectors = item_vectors[FIRST_ROW:]
    levels = levels_of(vectors, lists)
    if levels is None:
        return None
    lists = replace(lists, levels=levels)
    scan = FourBits(vectors, lists)
    chosen: list[tuple[int, int]] = []
    shares: tuple[float, ...] = _LEFT_TO_CODES
    for depth, best in of_depth:
        found = best.least_work(depth, scan, recall, shares)
        if found is None:
            break  # what is deeper is searched exactly
        work, probes, again, left = found
        if not chosen and work >= cost_in_half:
            return None
        chosen.append((probes, again))
        shares = tuple(each for each in _LEFT_TO_CODES if each >= left)[:2]
    if not chosen:
        return None
    depths = [depth for depth, _ in of_depth[: len(chosen)]]
    fewest, rescored = zip(*chosen, strict=True)
    return replace(lists, probes=_rising(depths, fewest), rescored=_rising(depths, rescored))


def _rising(depths: "list[int]", numbers: "list[int] | tuple[int, ...]") -> dict[int, int]:
    return dict(zip(depths, np.maximum.accumulate(numbers).tolist(), strict=True))


class _Best:
    """The best items of some queries, and where their lists stand in each query's order of lists.

    Args:
        lists: Of the catalogue.
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU.
        query_vectors: ``(Q, dim)`` float32.
        depths: To tune, ascending.
    """

    def __init__(
        self, lists: Lists, item_vectors: Tensor, query_vectors: Tensor, depths: list[int]
    ) -> None:
        exact = ExactIndex(item_vectors, reserved_rows=FIRST_ROW)
        self.depths, self._num_lists, self._num_rows = depths, len(lists), len(item_vectors)
        self._queries = np.ascontiguousarray(query_vectors.numpy(), np.float32)
        self._lengths = lengths_of(self._queries)
        self._rows: Rows = exact.search(query_vectors, depths[-1]).item_rows
        order = lists.scores(query_vectors).argsort(dim=1, descending=True, stable=True).numpy()
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(len(lists))[None], axis=1)
        lines = lists.list_of[np.maximum(self._rows - FIRST_ROW, 0)]
        is_item = self._rows != PADDING_ROW
        ranks = np.take_along_axis(places, lines, axis=1)
        self._ranks: Ints = np.where(is_item, ranks, len(lists))  # L where there is no item
        sizes = np.bincount(lists.list_of, minlength=len(lists))
        self._scanned: Floats = sizes[order].cumsum(axis=1).mean(axis=0)
        self._width = item_vectors.shape[1] / _MEASURED_WIDTH

    def fewest(self, depth: int, recall: float) -> int:
        """Return the fewest lists that surely hold a share ``recall`` of the best items of a query."""
        num_lists = self._num_lists
        ranks = self._ranks[:, :depth]
        hits = np.stack([np.bincount(line, minlength=num_lists + 1)[:num_lists] for line in ranks])
        lower = _lower(hits.cumsum(axis=1) / np.maximum(1, hits.sum(axis=1, keepdims=True)))
        lower[-1] = 1.0
        return int(np.argmax(lower >= recall)) + 1

    def cost(self, depth: int, probes: int) -> float:
        """Return the nanoseconds of a query whose lists are scanned in half precision."""
        scanned = _HALF * self._width * self._scanned[probes - 1]
        return float(_PROBING * probes + scanned + _RESCORING * self._width * _SPARE * depth)

    def least_work(
        self, depth: int, scan: Scan, recall: float, shares: tuple[float, ...]
    ) -> tuple[float, int, int, float] | None:
        """Return the least work that reaches a recall by codes; None where none does.

        Args:
            depth: One of ``depths``.
            scan: By codes.
            recall: In (0, 1].
            shares: Of what may be missed, to leave to the codes.

        Returns:
            Nanoseconds, lists, items that are scored again, and the share.
        """
        found: list[tuple[float, int, int, float]] = []
        rescored = np.array([int(depth * share) for share in _RESCORED])
        for left in shares:
            probes = self.fewest(depth, 1 - (1 - recall) * (1 - left))
            reached = _lower(self._shares(depth, scan, probes, rescored)) >= recall
            if reached.any():
                again = int(rescored[np.argmax(reached)])
                scanned = _CODED * self._width * self._scanned[probes - 1]
                work = _PROBING * probes + scanned + _RESCORING * self._width * again
                found.append((float(work), probes, again, left))
        return min(found, default=None)

    def _shares(self, depth: int, scan: Scan, probes: int, rescored: Ints) -> Floats:
        """Return which share of the best items is among the first of a scan: ``(Q, n)``."""
        shares, is_best = [], np.zeros(self._num_rows, np.bool_)
        for start in range(0, len(self._rows), _CHUNK):
            here = slice(start, start + _CHUNK)
            most = int(rescored[-1])
            rows, _ = scan.search(self._queries[here], self._lengths[here], probes, most)
            for found, best in zip(rows, self._rows[here, :depth], strict=True):
                real = best[best != PADDING_ROW]
                is_best[real] = True
                hits: Bools = is_best[found] & (found >= 0)
                is_best[real] = False
                shares.append(hits.cumsum()[rescored - 1] / max(1, len(real)))
        return np.stack(shares)


def _lower(shares: Floats) -> Floats:
    """Return the lower end of the one-sided 95 % interval of the mean over queries: ``(n,)``."""
    lower: Floats = shares.mean(axis=0) - _SURE * shares.std(axis=0) / len(shares) ** 0.5
    return lower
