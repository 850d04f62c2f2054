"""Batches of whole histories: one pass of a causal query tower trains an example at each position."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import numpy.typing as npt

from twotower.arrays import Bools, Float32s, Floats, Ints, Rows
from twotower.data.batches import taken
from twotower.data.dataset import Column, Interactions
from twotower.errors import check_least
from twotower.vocab import PADDING_ROW

POOL_BATCHES = 64
"""Batches' worth of windows that are sorted by length together, so that little is padded."""


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """``S`` windows of histories, each position with the event after it.

    Args:
        rows: ``(S, W)`` int32 items that are read, oldest first, right-aligned, ``PADDING_ROW`` where
            padded.
        target_rows: ``(S, W)`` int32 the item of the event after each position's, or of one of the next
            few, ``PADDING_ROW`` where that is no example. A query's first event is the target of a padded
            position.
        query_rows: ``(S,)`` int32.
        times: ``(S, W)`` float64 seconds of the events that are read, or None.
        weights: ``(S, W)`` float32 of the targets, or None where all are 1.
        event_rows: ``(S, W)`` int32 where the features of the events that are read stand, or None.
        asked: ``(S, W)`` float64 seconds of the targets, which are the times of the questions; or None.
    """

    rows: Rows
    target_rows: Rows
    query_rows: Rows
    times: Floats | None = None
    weights: Float32s | None = None
    event_rows: Rows | None = None
    asked: Floats | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return int((self.target_rows != PADDING_ROW).sum())

    @property
    def examples_of_lines(self) -> Ints:
        """``(S,)`` how many examples each window holds."""
        return np.asarray((self.target_rows != PADDING_ROW).sum(axis=1), np.int64)

    @property
    def example_weights(self) -> Float32s | None:
        """``(n,)`` what each example weighs, window by window; None where all weigh 1."""
        return None if self.weights is None else self.weights[self.target_rows != PADDING_ROW]

    def take(self, lines: slice) -> "PrefixBatch":
        """Return some of the windows."""
        return replace(self, **taken(self, lines))


@dataclass(eq=False, repr=False)
class PrefixBatches:
    """Shuffled batches of windows. Two objects with equal arguments give equal batches.

    An epoch holds each event once as an example (where targets are drawn, each position once). A history of
    more than ``length`` events is cut into windows, at other places in each epoch. Each window reads up to
    ``length`` events; where there is room, these include events before its first example. Windows of about
    equal length share a batch.

    Args:
        events: The training events that a history reads, in their order; the positives are examples.
        batch_size: Examples a batch, about, at least 1.
        length: Most events that a window reads, at least 1.
        seed: Of the shuffles, the cuts and the targets.
        next_events: A position's target is one of this many next events, all equally likely. At least 1.

    Raises:
        ValueError: ``batch_size``, ``length`` or ``next_events`` is below 1.

    Source: Pancha et al., KDD 2022 (PinnerFormer: targets drawn from what follows, not the next alone).
    """

    events: Interactions
    _: KW_ONLY
    batch_size: int
    length: int
    seed: int
    next_events: int = 1

    def __post_init__(self) -> None:
        sizes = {"batch_size": self.batch_size, "length": self.length}
        check_least(1, **sizes, next_events=self.next_events)
        self._is_example = self.events.is_positive
        self._before = np.concatenate([[0], np.cumsum(self._is_example)]).astype(np.int64)

    def __len__(self) -> int:
        """Number of batches an epoch, but for the rounding of windows."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Number of examples an epoch, where targets are not drawn."""
        return int(self._before[-1])

    def epoch(self, epoch: int) -> Iterator[PrefixBatch]:
        """Yield the batches of an epoch."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        starts, ends, query_rows = self._windows(rng)
        order = rng.permutation(len(starts))
        pool = POOL_BATCHES * self.batch_size
        counts = self._before[ends] - self._before[starts]
        sizes = counts[order]
        group = (np.cumsum(sizes) - sizes) // pool
        reads = np.minimum(ends - 1 - self.events.offsets[query_rows], self.length)[order]
        order = order[np.lexsort((reads, group))]
        sizes = counts[order]
        number_of = (np.cumsum(sizes) - sizes) * len(self) // max(1, self.num_examples)
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(number_of)) + 1, [len(number_of)]])
        for number in rng.permutation(len(cuts) - 1):
            picked = order[cuts[number] : cuts[number + 1]]
            if len(picked):
                drawn = None
                if self.next_events > 1:
                    drawn = np.random.default_rng([self.seed, epoch, 3, number])
                batch = self._gather(starts[picked], ends[picked], query_rows[picked], drawn)
                if len(batch):  # drawn targets can all be of kinds that are not asked for
                    yield batch

    def _windows(self, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Return where the examples of each window start and end, and whose it is."""
        lengths = np.diff(self.events.offsets)
        # The first window of a long history is cut short by a random number of events.
        first = np.where(
            lengths > self.length, rng.integers(1, self.length + 1, len(lengths)), lengths
        )
        more = -(-(lengths - first) // self.length)
        counts = np.where(lengths > 0, 1 + more, 0)
        query_rows = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(len(query_rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin, end = self.events.offsets[query_rows], self.events.offsets[query_rows + 1]
        uncut = begin + first[query_rows] + number * self.length
        starts, ends = np.maximum(uncut - self.length, begin), np.minimum(uncut, end)
        has_example = self._before[ends] > self._before[starts]
        return starts[has_example], ends[has_example], query_rows[has_example]

    def _gather(
        self, starts: Ints, ends: Ints, query_rows: Ints, rng: np.random.Generator | None
    ) -> PrefixBatch:
        events = self.events
        begins = np.maximum(events.offsets[query_rows], ends - 1 - self.length)
        width = int(np.maximum(ends - starts, ends - 1 - begins).max())
        after = ends[:, None] - width + np.arange(width)  # (S, W) the event after each position's
        is_read, is_target = after - 1 >= begins[:, None], after >= starts[:, None]
        read, target = np.maximum(after - 1, 0), np.maximum(after, 0)
        if rng is not None:
            left = events.offsets[query_rows + 1][:, None] - target
            target += (rng.random(target.shape) * np.minimum(left, self.next_events)).astype(int)
        is_target &= self._is_example[target]

        def told(
            column: npt.NDArray[Column] | None, places: Ints, mask: Bools
        ) -> npt.NDArray[Column] | None:
            if column is None:
                return None
            return np.where(mask, column[places], np.zeros((), column.dtype))

        return PrefixBatch(
            rows=np.where(is_read, events.item_rows[read], PADDING_ROW),
            target_rows=np.where(is_target, events.item_rows[target], PADDING_ROW),
            query_rows=query_rows.astype(np.int32),
            times=told(events.times, read, is_read),
            weights=told(events.weights, target, is_target),
            event_rows=told(events.event_rows, read, is_read),
            asked=told(events.times, target, is_target),
        )
