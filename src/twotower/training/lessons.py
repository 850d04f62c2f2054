"""``Lessons``: what a teacher says of some moments, in batches for the steps of a training."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from twotower.arrays import Float32s, Ints, Rows
from twotower.data.batches import PairBatch
from twotower.histories import Histories, last_windows
from twotower.vocab import PADDING_ROW


@dataclass(frozen=True, eq=False)
class LessonBatch:
    """The lessons of one step.

    Args:
        batch: The queries with their histories; its own items are padding.
        item_rows: ``(n, N)`` int32, see ``Lessons``.
        values: ``(n, N)`` float32, see ``Lessons``.
    """

    batch: PairBatch
    item_rows: Rows
    values: Float32s


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a teacher says of ``n`` moments, each with its candidates.

    Args:
        query_rows: ``(n,)`` int32.
        histories: What is known at each moment, an event at least, with the times of the questions.
        item_rows: ``(n, N)`` int32 the teacher's candidates, ``PADDING_ROW`` where there are fewer; each
            moment has one at least.
        values: ``(n, N)`` float32, what the teacher says of each, higher is better; ``-inf`` where padded.
    """

    query_rows: Rows
    histories: Histories
    item_rows: Rows
    values: Float32s

    def __len__(self) -> int:
        """Number of moments."""
        return len(self.query_rows)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256()
        held = self.histories
        columns = (held.offsets, held.item_rows, held.times, held.asked)
        for array in (self.query_rows, self.item_rows, self.values, *columns):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def epoch(
        self, epoch: int, num_steps: int, *, seed: int, length: int
    ) -> Iterator[LessonBatch | None]:
        """Yield the lessons of each step of an epoch, which holds each lesson once, in a random order.

        Args:
            epoch: Its number.
            num_steps: Steps of the epoch, at least 1; where there are fewer lessons, some steps have None.
            seed: Of the order.
            length: Most recent events of a history that the model reads.
        """
        order = np.random.default_rng([seed, epoch, 8]).permutation(len(self))
        ends = np.arange(num_steps + 1) * len(self) // num_steps
        for start, end in pairwise(ends.tolist()):
            yield self._batch(order[start:end], length) if end > start else None

    def _batch(self, lines: Ints, length: int) -> LessonBatch:
        held = self.histories.take(lines)
        windows = last_windows(held, min(length, int(held.lengths.max())))
        batch = PairBatch(
            query_rows=self.query_rows[lines],
            item_rows=np.full(len(lines), PADDING_ROW, np.int32),
            history_rows=windows.rows,
            history_times=windows.times,
            history_event_rows=windows.event_rows,
            asked=held.asked,
        )
        return LessonBatch(batch, self.item_rows[lines], self.values[lines])
