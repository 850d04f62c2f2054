"""Which items follow which: counts of pairs of events that are close together in one query."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from twotower.arrays import Float32s, Ints, Rows
from twotower.vocab import FIRST_ROW

if TYPE_CHECKING:
    from scipy import sparse

REACH = 5
"""How many events later an item still follows another."""
_FADES = 0.7  # what a pair counts for each event further apart
_FOLLOWERS = 50  # that are kept of an item
_SHRINKAGE = 5.0  # events that are added to each item's own, so that rare pairs count less
_MOST_EVENTS = 10_000_000  # of evenly spaced queries where there are more
_ROWS = 2**16  # of the matrix that are cut to their largest cells at once
RECENT = 10
"""Events of a history whose followers are looked up."""
_NEWEST = 3  # of them, those whose next item is looked up
_HALF_LIFE = 4.0  # events after which an event of the history counts half


@dataclass(frozen=True, eq=False)
class Follows:
    """For each item the items that most often come soon after it, with two weights.

    With ``c(i, j)`` a sum over pairs of events in one query, an event of ``i`` and a later one of ``j``::

        weight(i, j) = c(i, j) / sqrt((events of i + 5) * (events of j + 5))

    For ``near``, pairs up to five events apart count, each by ``0.7 ** (distance - 1)``; for ``next``, only
    neighbours. Kept are the 50 items of the largest ``near``.

    Args:
        offsets: ``(num_item_rows + 1,)`` int64; item ``i`` has the entries from ``offsets[i]`` up to
            ``offsets[i + 1]``.
        item_rows: ``(m,)`` int32, the items that follow, ascending for each item.
        near: ``(m,)`` float32.
        next: ``(m,)`` float32.

    Source: Sarwar et al., WWW 2001 (item-based neighbours, a few of each kept). Differs: pairs are ordered
        and fade with their distance, and the counts are shrunk.
    """

    offsets: Ints
    item_rows: Rows
    near: Float32s
    next: Float32s

    @staticmethod
    def fit(offsets: Ints, item_rows: Rows, num_item_rows: int) -> "Follows":
        """Return what follows what among the events of training.

        Args:
            offsets: ``(Q + 1,)`` where the events of each query begin and end.
            item_rows: ``(E,)`` their items, each query's in the order of time.
            num_item_rows: Rows of the item vocabulary.
        """
        from scipy import sparse  # opening a bundle does without

        offsets, item_rows = _thinned(offsets, item_rows)
        owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        shape = (num_item_rows, num_item_rows)
        near = following = sparse.csr_array(shape, dtype=np.float32)
        for distance in range(1, REACH + 1):
            first, later = item_rows[:-distance], item_rows[distance:]
            is_pair = (owners[:-distance] == owners[distance:]) & (first != later)
            is_pair &= (first >= FIRST_ROW) & (later >= FIRST_ROW)
            ones = np.full(int(is_pair.sum()), _FADES ** (distance - 1), np.float32)
            pairs = sparse.csr_array((ones, (first[is_pair], later[is_pair])), shape=shape)
            near = near + pairs
            if distance == 1:
                following = pairs
        counts = np.bincount(item_rows, minlength=num_item_rows) + _SHRINKAGE
        scale = sparse.diags_array((1 / np.sqrt(counts)).astype(np.float32))
        return _cut((scale @ near @ scale).tocsr(), (scale @ following @ scale).tocsr())

    @property
    def num_item_rows(self) -> int:
        """Rows of the item vocabulary it was fitted on. Later items follow nothing."""
        return len(self.offsets) - 1

    def after(self, recent: Rows, candidates: Rows) -> tuple[Float32s, Float32s]:
        """Return how much each candidate follows the events of a history, newest ones first.

        Args:
            recent: ``(n, L)`` int32 the last items of ``n`` histories, oldest first, padded on the left.
            candidates: ``(n, N)`` int32, distinct for each history.

        Returns:
            ``(n, N)`` float32 twice: the sum of ``near`` over the last ten events, each counting half of
            the one four later; and that of ``next`` over the last three.
        """
        recent = recent[:, -RECENT:]
        num, length = recent.shape
        ages = np.arange(length)[::-1]
        is_there = (recent >= FIRST_ROW) & (recent < self.num_item_rows)
        owners, places = np.nonzero(is_there)
        rows = recent[owners, places]
        starts, sizes = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(sizes)
        entries = np.arange(int(sizes.sum())) + np.repeat(starts - ends + sizes, sizes)
        owners, ages = np.repeat(owners, sizes), np.repeat(ages[places], sizes)
        keys = owners.astype(np.int64) << 32 | self.item_rows[entries]
        wanted = np.arange(num, dtype=np.int64)[:, None] << 32 | candidates
        order = np.argsort(wanted, axis=None)
        known = wanted.ravel()[order]
        at = np.minimum(np.searchsorted(known, keys), max(0, len(known) - 1))
        found = known[at] == keys if len(known) else np.zeros(0, np.bool_)
        at, entries, ages = order[at[found]], entries[found], ages[found]
        fades = 0.5 ** (ages / _HALF_LIFE)
        near = np.bincount(at, self.near[entries] * fades, candidates.size)
        is_new = ages < _NEWEST
        of_next = self.next[entries[is_new]] * fades[is_new]
        following = np.bincount(at[is_new], of_next, candidates.size)
        shape = candidates.shape
        return near.reshape(shape).astype(np.float32), following.reshape(shape).astype(np.float32)


def _thinned(offsets: Ints, item_rows: Rows) -> tuple[Ints, Rows]:
    """Return the events of evenly spaced queries, at most ``_MOST_EVENTS`` or about so many."""
    step = -(-len(item_rows) // _MOST_EVENTS)
    if step <= 1:
        return np.asarray(offsets), np.asarray(item_rows)
    chosen = np.arange(0, len(offsets) - 1, step)
    starts, sizes = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    ends = np.cumsum(sizes)
    places = np.arange(int(sizes.sum())) + np.repeat(starts - ends + sizes, sizes)
    return np.concatenate([[0], ends]), np.asarray(item_rows[places])


def _cut(near: "sparse.csr_array", following: "sparse.csr_array") -> Follows:
    """Return the largest cells of each line of ``near``, with those of ``following`` beside."""
    lengths = np.zeros(near.shape[0], np.int64)
    columns, weights, beside = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], []
    for start in range(0, near.shape[0], _ROWS):
        part = near[start : start + _ROWS]
        sizes = np.diff(part.indptr)
        owners = np.repeat(np.arange(part.shape[0]), sizes)
        order = np.lexsort((part.indices, -part.data, owners))
        places = np.arange(len(order)) - np.repeat(part.indptr[:-1], sizes)
        kept = order[places < _FOLLOWERS]
        kept = kept[np.lexsort((part.indices[kept], owners[kept]))]
        lengths[start : start + _ROWS] = np.minimum(sizes, _FOLLOWERS)
        columns.append(part.indices[kept].astype(np.int32))
        weights.append(part.data[kept].astype(np.float32))
        if len(kept):  # of no places SciPy returns a sparse array
            cells = following[start : start + _ROWS][owners[kept], part.indices[kept]]
            beside.append(np.asarray(cells, np.float32).ravel())
    return Follows(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate(columns),
        np.concatenate(weights),
        np.concatenate([np.zeros(0, np.float32), *beside]),
    )
