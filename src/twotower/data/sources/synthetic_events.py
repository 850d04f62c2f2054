"""Drawing the events of a synthetic world, all queries of a block at a time."""

import numpy as np
import numpy.typing as npt

REDRAWS = 16  # after so many, the few that are left are drawn from explicit probabilities
EXPLICIT_CELLS = 4_000_000  # keeps those probabilities small where clusters are huge

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


def open_clusters(history_clusters: Int32s, sizes: Ints) -> Bools:
    """Return which clusters still have an item that the query has not had: ``(n, C)``.

    Args:
        history_clusters: ``(n, t)`` clusters of each query's earlier events.
        sizes: ``(C,)`` how many items each has.
    """
    had = np.zeros((len(history_clusters), len(sizes)), np.int64)
    np.add.at(had, (np.arange(len(had))[:, None], history_clusters), 1)
    return sizes > had


class EventSampler:
    """Draws the items of queries by a world's parameters; the arrays are those of ``World``.

    An item's slot is its place in (cluster, position within it). Every cluster has as many slots as
    the largest needs; those left over have no weight and are never drawn.

    Args:
        cluster_probs: ``(K, C + 1, C)`` float64; line ``C`` is for the first event.
        item_clusters: ``(I,)`` int32.
        item_weights: ``(I,)`` float64.
    """

    def __init__(
        self, *, cluster_probs: Floats, item_clusters: Int32s, item_weights: Floats
    ) -> None:
        self._num_clusters = num_clusters = int(cluster_probs.shape[2])
        rows = np.argsort(item_clusters, kind="stable")
        clusters = item_clusters[rows].astype(np.int64)
        self._sizes = sizes = np.bincount(clusters, minlength=num_clusters)
        self._width = int(sizes.max())
        within = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[clusters]
        slots = clusters * self._width + within
        num_slots = num_clusters * self._width
        self._rows = np.zeros(num_slots, np.int32)
        self._rows[slots] = rows
        self._weights = np.zeros(num_slots)
        self._weights[slots] = item_weights[rows]
        # One line a persona and last cluster.
        self._next_clusters = cluster_probs.reshape(-1, num_clusters)
        self._cluster_cdf = _stacked_cdf(self._next_clusters)
        self._item_cdf = _stacked_cdf(self._weights.reshape(-1, self._width))

    def draw(self, personas: Int32s, num_events: int, rng: np.random.Generator) -> Int32s:
        """Return the item row of each event: ``(L, n)`` int32, none twice in a column.

        Args:
            personas: ``(n,)``.
            num_events: ``L``.
            rng: Where the draws come from.
        """
        shape = (num_events, len(personas))
        slots, clusters = np.empty(shape, np.int32), np.empty(shape, np.int32)
        last = np.full(len(personas), self._num_clusters, np.int32)
        may_close = self._sizes.min() < num_events
        for t in range(num_events):
            lines = personas * np.int32(self._num_clusters + 1) + last
            last = (_search(self._cluster_cdf, lines, rng) % self._num_clusters).astype(np.int32)
            if may_close:
                had = (clusters[:t] == last).sum(axis=0)
                closed = np.flatnonzero(self._sizes[last] <= had)
                # One refused draw, then one from what is open: the same as redrawing until it fits.
                open_ = open_clusters(clusters[:t, closed].T, self._sizes)
                last[closed] = _draw_weighted(self._next_clusters[lines[closed]] * open_, rng)
            clusters[t] = last
            slots[t] = self._draw_items(last, slots[:t], rng)
        return np.asarray(self._rows[slots])

    def _draw_items(self, clusters: Int32s, seen: Int32s, rng: np.random.Generator) -> Int32s:
        """Return a slot of each query's cluster that is not among its ``(t, n)`` ``seen``."""
        chosen = _search(self._item_cdf, clusters, rng).astype(np.int32)
        refused = np.flatnonzero((seen == chosen).any(axis=0))
        for _ in range(REDRAWS):
            if not len(refused):
                return chosen
            again = _search(self._item_cdf, clusters[refused], rng).astype(np.int32)
            chosen[refused] = again
            refused = refused[(seen[:, refused] == again).any(axis=0)]
        step = max(1, EXPLICIT_CELLS // self._width)
        for begin in range(0, len(refused), step):
            part = refused[begin : begin + step]
            starts = clusters[part] * np.int32(self._width)
            slots = starts[:, None] + np.arange(self._width, dtype=np.int32)  # (m, width)
            allowed = np.ones(slots.shape, np.bool_)
            event, line = np.nonzero(seen[:, part] // self._width == clusters[part])
            allowed[line, seen[event, part[line]] - starts[line]] = False
            chosen[part] = starts + _draw_weighted(self._weights[slots] * allowed, rng)
        return chosen


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
