"""Batches of queries whose events have no order: some events are the history, the others are targets."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np

from twotower.arrays import Bools, Float32s, Ints, Rows, distinct
from twotower.data.dataset import Interactions
from twotower.errors import check_least
from twotower.histories import Windows
from twotower.vocab import PADDING_ROW

TARGET_SHARE = 0.5
"""Probability with which an item of a query is a target; the other items are the history."""
EMPTY_SHARE = 0.05
"""Share of the queries whose items are all targets. They train the vector of an empty history."""


@dataclass(frozen=True, eq=False)
class SetBatch:
    """``B`` queries, each with a part of its events as the history, and the others as ``T`` targets in all.

    Args:
        query_rows: ``(B,)`` int32.
        history_rows: ``(B, L)`` int32, right-aligned, ``PADDING_ROW`` where padded.
        item_rows: ``(T,)`` int32 the targets, those of a query next to each other.
        owners: ``(T,)`` int64 the line of each target's query, ascending; each line has a target.
        history_event_rows: ``(B, L)`` int32 where the features of the history's events stand, or None.
        weights: ``(T,)`` float32 of the targets, or None where all are 1.
    """

    query_rows: Rows
    history_rows: Rows
    item_rows: Rows
    owners: Ints
    history_event_rows: Rows | None = None
    weights: Float32s | None = None

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.item_rows)

    @property
    def examples_of_lines(self) -> Ints:
        """``(B,)`` how many targets each query has."""
        return np.bincount(self.owners, minlength=len(self.query_rows))

    @property
    def example_weights(self) -> Float32s | None:
        """``(T,)`` what each target weighs; None where all weigh 1."""
        return self.weights

    def take(self, lines: slice) -> "SetBatch":
        """Return some of the queries, with their targets."""
        start, end = np.searchsorted(self.owners, [lines.start, lines.stop])
        event_rows = self.history_event_rows
        return SetBatch(
            query_rows=self.query_rows[lines],
            history_rows=self.history_rows[lines],
            item_rows=self.item_rows[start:end],
            owners=self.owners[start:end] - lines.start,
            history_event_rows=None if event_rows is None else event_rows[lines],
            weights=None if self.weights is None else self.weights[start:end],
        )


@dataclass(eq=False, repr=False)
class SetBatches:
    """Shuffled batches of queries. Two objects with equal arguments give equal batches.

    Each time that a query is drawn, each of its items is a target with probability ``TARGET_SHARE``, and at
    least one item is. So an item is never predicted from itself, and one vector of the query predicts many
    items, which costs a fraction of one vector for each. An epoch draws each query ``passes`` times.

    Args:
        events: The training events; those that a history reads are read, the positives are targets.
        batch_size: Queries a batch, at least 1.
        length: Most events of a history that are read, at least 1; of more, a random part is read.
        seed: Of the shuffles and of the targets.
        least_batches: Batches that an epoch has at least: a small table is drawn more often.

    Raises:
        ValueError: ``batch_size``, ``length`` or ``least_batches`` is below 1.

    Source: Liang et al., WWW 2018, section 2 (one multinomial likelihood of all items of a user); Steck,
        NeurIPS 2020 (a dropped-out input keeps an autoencoder from predicting an item by itself). Differs:
        an item of the history is never a target, as when serving.
    """

    events: Interactions
    _: KW_ONLY
    batch_size: int
    length: int
    seed: int
    least_batches: int = 1

    def __post_init__(self) -> None:
        sizes = {"batch_size": self.batch_size, "length": self.length}
        check_least(1, **sizes, least_batches=self.least_batches)
        events = self.events
        self._queries = distinct(events.query_rows[events.is_positive])
        # All events of one item are in the history, or all are targets.
        pairs = events.query_rows.astype(np.int64) << 32 | events.item_rows
        distinct_pairs, self._pair_of = np.unique(pairs, return_inverse=True)
        self._num_pairs = len(distinct_pairs)
        is_asked = np.zeros(self._num_pairs, np.bool_)
        is_asked[self._pair_of[events.is_positive]] = True
        self._can_ask = is_asked[self._pair_of]
        per_pass = max(1, -(-len(self._queries) // self.batch_size))
        wanted = max(round(1 / TARGET_SHARE) * per_pass, self.least_batches)
        self.passes = -(-wanted // per_pass)
        """How often an epoch draws each query: so often that each item is a target about once, or more."""

    def __len__(self) -> int:
        """Number of batches an epoch."""
        return self.passes * -(-len(self._queries) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[SetBatch]:
        """Yield the batches of an epoch."""
        for number in range(self.passes):
            rng = np.random.default_rng([self.seed, epoch, 0, number])
            order = rng.permutation(self._queries)
            draws = rng.random(self._num_pairs, np.float32)[self._pair_of]
            is_empty = rng.random(len(order)) < EMPTY_SHARE
            for start in range(0, len(order), self.batch_size):
                part = slice(start, start + self.batch_size)
                yield self._gather(order[part], draws, is_empty[part])

    def _gather(self, query_rows: Rows, draws: Float32s, is_empty: Bools) -> SetBatch:
        events = self.events
        starts, ends = events.offsets[query_rows], events.offsets[query_rows + 1]
        counts = ends - starts
        lines = np.repeat(np.arange(len(query_rows)), counts)
        places = np.arange(len(lines)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        drawn, can_ask = draws[places], self._can_ask[places]
        shares = np.full(len(query_rows), np.inf, np.float32)
        np.minimum.at(shares, lines[can_ask], drawn[can_ask])  # at least one item is a target
        shares = np.maximum(shares, np.float32(TARGET_SHARE))
        shares[is_empty] = 1
        is_asked = can_ask & (drawn <= shares[lines])
        is_target, is_read = (
            is_asked & events.is_positive[places],
            ~is_asked & events.is_read[places],
        )
        windows = self._windows(places, lines, drawn, is_read, len(query_rows))
        return SetBatch(
            query_rows=query_rows,
            history_rows=windows.rows,
            item_rows=events.item_rows[places[is_target]],
            owners=lines[is_target],
            history_event_rows=windows.event_rows,
            weights=None if events.weights is None else events.weights[places[is_target]],
        )

    def _windows(
        self, places: Ints, lines: Ints, drawn: Float32s, is_read: Bools, num: int
    ) -> Windows:
        """Return the windows of ``num`` histories: of more events than fit, those that were drawn last."""
        places, lines, drawn = places[is_read], lines[is_read], drawn[is_read]
        order = np.lexsort((drawn, lines))
        places, lines = places[order], lines[order]
        ends = np.cumsum(np.bincount(lines, minlength=num))
        from_end = ends[lines] - np.arange(len(lines))  # 1 at the last
        width = min(self.length, int(from_end.max(initial=1)))
        fits = from_end <= width
        at = lines[fits], width - from_end[fits]

        def window(column: Rows) -> Rows:
            found = np.full((num, width), PADDING_ROW, np.int32)
            found[at] = column[places[fits]]
            return found

        event_rows = self.events.event_rows
        return Windows(
            rows=window(self.events.item_rows),
            event_rows=None if event_rows is None else window(event_rows),
        )
