"""Drawing the events of a synthetic world, all queries of a block at a time."""

import numpy as np
import numpy.typing as npt

REDRAWS = 16  # after so many, the few that are left are drawn from explicit probabilities
EXPLICIT_CELLS = 4_000_000  # keeps those probabilities small where clusters are huge

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SPAN = np.int64(1 << 40)  # above any time in seconds


class Stock:
    """What the clusters of a world still have for a query at a moment.

    Args:
        item_clusters: ``(I,)`` int32.
        item_born: ``(I,)`` int64 seconds since 1970.
        num_clusters: ``C``.
    """

    def __init__(self, item_clusters: Int32s, item_born: Ints, num_clusters: int) -> None:
        self.num_clusters = num_clusters
        clusters = np.arange(num_clusters)
        self._starts = np.searchsorted(np.sort(item_clusters), clusters)
        # Times are below SPAN, so one sorted array answers "how many born" for every cluster.
        self._births = np.sort(item_clusters * SPAN + item_born)
        self._least_born = self.num_born(clusters, item_born.min()).min()

    def num_born(self, clusters: npt.NDArray[np.integer], moments: Ints | np.int64) -> Ints:
        """Return how many items of each cluster are born at each moment, broadcast."""
        born = np.searchsorted(self._births, clusters * SPAN + moments, side="right")
        return np.asarray(born - self._starts[clusters])

    def may_close(self, num_events: int) -> bool:
        """Return whether a query of so many events can run out of a cluster's items."""
        return bool(self._least_born < num_events)

    def open_clusters(self, history_clusters: Int32s, moments: Ints) -> Bools:
        """Return which clusters still have a born item that the query has not had: ``(n, C)``.

        Args:
            history_clusters: ``(n, t)`` clusters of each query's earlier events.
            moments: ``(n,)`` seconds since 1970.
        """
        had = np.zeros((len(moments), self.num_clusters), np.int64)
        np.add.at(had, (np.arange(len(moments))[:, None], history_clusters), 1)
        return self.num_born(np.arange(self.num_clusters), moments[:, None]) > had


class EventSampler:
    """Draws the items of queries by a world's parameters; the arrays are those of ``World``.

    An item's slot is its place in (cluster, position within it). Every cluster has as many slots as
    the largest needs; those left over have no weight and are never drawn.

    Args:
        cluster_probs: ``(K, C + 1, C)`` float64; line ``C`` is for the first event.
        item_clusters: ``(I,)`` int32.
        item_weights: ``(I,)`` float64.
        item_born: ``(I,)`` int64 seconds since 1970.
    """

    def __init__(
        self, *, cluster_probs: Floats, item_clusters: Int32s, item_weights: Floats, item_born: Ints
    ) -> None:
        self._num_clusters = num_clusters = int(cluster_probs.shape[2])
        self._stock = Stock(item_clusters, item_born, num_clusters)
        rows = np.argsort(item_clusters, kind="stable")
        clusters = item_clusters[rows].astype(np.int64)
        sizes = np.bincount(clusters, minlength=num_clusters)
        self._width = int(sizes.max())
        within = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[clusters]
        slots = clusters * self._width + within
        num_slots = num_clusters * self._width
        self._rows = np.zeros(num_slots, np.int32)
        self._rows[slots] = rows
        self._weights = np.zeros(num_slots)
        self._weights[slots] = item_weights[rows]
        self._born = item_born[self._rows]
        self._may_be_unborn = bool((item_born > item_born.min()).any())
        # One line a persona and last cluster.
        self._next_clusters = cluster_probs.reshape(-1, num_clusters)
        self._cluster_cdf = _stacked_cdf(self._next_clusters)
        self._item_cdf = _stacked_cdf(self._weights.reshape(-1, self._width))

    def draw(self, personas: Int32s, times: Ints, rng: np.random.Generator) -> Int32s:
        """Return the item row of each event: ``(L, n)`` int32, none twice in a column.

        Args:
            personas: ``(n,)``.
            times: ``(L, n)`` seconds since 1970, rising.
            rng: Where the draws come from.
        """
        slots, clusters = np.empty(times.shape, np.int32), np.empty(times.shape, np.int32)
        last = np.full(len(personas), self._num_clusters, np.int32)
        may_close = self._stock.may_close(len(times))
        for t, moments in enumerate(times):
            lines = personas * np.int32(self._num_clusters + 1) + last
            last = (_search(self._cluster_cdf, lines, rng) % self._num_clusters).astype(np.int32)
            if may_close:
                had = (clusters[:t] == last).sum(axis=0)
                closed = np.flatnonzero(self._stock.num_born(last, moments) <= had)
                # One refused draw, then one from what is open: the same as redrawing until it fits.
                open_ = self._stock.open_clusters(clusters[:t, closed].T, moments[closed])
                last[closed] = _draw_weighted(self._next_clusters[lines[closed]] * open_, rng)
            clusters[t] = last
            slots[t] = self._draw_items(last, slots[:t], moments, rng)
        return np.asarray(self._rows[slots])

    def _draw_items(
        self, clusters: Int32s, seen: Int32s, moments: Ints, rng: np.random.Generator
    ) -> Int32s:
        """Return a born slot of each query's cluster that is not among its ``(t, n)`` ``seen``."""
        chosen = _search(self._item_cdf, clusters, rng).astype(np.int32)
        refused = np.flatnonzero(self._is_refused(chosen, seen, moments))
        for _ in range(REDRAWS):
            if not len(refused):
                return chosen
            again = _search(self._item_cdf, clusters[refused], rng).astype(np.int32)
            chosen[refused] = again
            refused = refused[self._is_refused(again, seen[:, refused], moments[refused])]
        step = max(1, EXPLICIT_CELLS // self._width)
        for begin in range(0, len(refused), step):
            part = refused[begin : begin + step]
            starts = clusters[part] * np.int32(self._width)
            slots = starts[:, None] + np.arange(self._width, dtype=np.int32)  # (m, width)
            allowed = self._born[slots] <= moments[part][:, None]
            event, line = np.nonzero(seen[:, part] // self._width == clusters[part])
            allowed[line, seen[event, part[line]] - starts[line]] = False
            chosen[part] = starts + _draw_weighted(self._weights[slots] * allowed, rng)
        return chosen

    def _is_refused(self, slots: Int32s, seen: Int32s, moments: Ints) -> npt.NDArray[np.bool_]:
        refused = (seen == slots).any(axis=0)
        if self._may_be_unborn:
            refused |= self._born[slots] > moments
        return np.asarray(refused)


def _stacked_cdf(weights: Floats) -> Floats:
    """Return the cumulative shares of ``(S, C)`` lines as one rising array; line s spans s..s+1."""
    cdf = np.cumsum(weights, axis=1)
    cdf /= cdf[:, -1:]
    return np.asarray((cdf + np.arange(len(cdf))[:, None]).reshape(-1))


def _search(cdf: Floats, lines: Int32s, rng: np.random.Generator) -> Ints:
    """Return for each of ``lines`` a drawn position in the flat array."""
    marks = lines + rng.random(len(lines))
    marks = np.minimum(marks, np.nextafter(lines + 1.0, 0))  # the sum may round up to the next line
    return np.asarray(np.searchsorted(cdf, marks, side="right"))


def _draw_weighted(weights: Floats, rng: np.random.Generator) -> Ints:
    """Return a column of each line of ``(m, W)`` weights, drawn in proportion; zeros never."""
    cdf = np.cumsum(weights, axis=1)
    marks = rng.random(len(weights)) * cdf[:, -1]
    marks = np.minimum(marks, np.nextafter(cdf[:, -1], 0))  # the product may round up to the total
    return np.asarray((cdf <= marks[:, None]).sum(axis=1))
