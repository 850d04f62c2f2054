"""Batches: rows of training events in bulk, seeded and resumable; never one object a sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twotower.data.dataset import Interactions
from twotower.features.histories import windows_before
from twotower.vocab import PADDING_ROW

Rows = npt.NDArray[np.int32]

BLOCK_EVENTS = 4096
BUFFER_BLOCKS = 256


@dataclass(frozen=True, eq=False)
class PairBatch:
    """``B`` training events, each with its history as of that event.

    Args:
        query_rows: ``(B,)`` int32.
        item_rows: ``(B,)`` int32.
        history_rows: ``(B, L)`` int32, oldest first, right-aligned, ``PADDING_ROW`` where padded; None
            where histories are not read.
        history_times: ``(B, L)`` float64 seconds, or None.
        labels: ``(B,)`` float32 0 or 1, or None where all are positives.
        weights: ``(B,)`` float32, or None where all are 1.
    """

    query_rows: Rows
    item_rows: Rows
    history_rows: Rows | None = None
    history_times: npt.NDArray[np.float64] | None = None
    labels: npt.NDArray[np.float32] | None = None
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of events."""
        return len(self.item_rows)


class PairBatches:
    """Shuffled batches of training events; two with equal arguments give equal batches.

    An epoch holds each event once. Columns in memory are shuffled by one permutation; columns that
    are mapped from disk are read in blocks of neighbouring events, which pass through a shuffle
    buffer of ``BUFFER_BLOCKS`` blocks, so that reading stays sequential.

    Args:
        events: The training events, all of them.
        batch_size: ``B``, at least 1; an epoch's last batch may be smaller.
        history_length: ``L``, at least 1, or None to leave histories out.
        ordered: Whether a history is the positives before the event; otherwise it is up to ``L`` of the
            query's other positives, wherever they stand, without the event's own item.
        seed: Of the shuffles.
        negatives: Whether events with label 0 are examples, too. They are never part of a history.

    Raises:
        ValueError: ``batch_size`` or ``history_length`` is below 1.
    """

    def __init__(
        self,
        events: Interactions,
        *,
        batch_size: int,
        history_length: int | None,
        ordered: bool,
        seed: int,
        negatives: bool = False,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("history_length", history_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.events = events
        self.batch_size = batch_size
        self.history_length = history_length
        self.ordered = ordered
        self.seed = seed
        positive = events.is_positive
        self._examples: npt.NDArray[np.int64] | None = None  # None where every event is one
        self._known, self._end_of = events, None
        if not positive.all():
            self._known = events.where(positive)
            # Where each event stands among the positives: its history ends there.
            self._end_of = np.concatenate([[0], np.cumsum(positive)[:-1]]).astype(np.int64)
            if not negatives:
                self._examples = np.flatnonzero(positive)
        self._own_start = self._known.offsets

    def __len__(self) -> int:
        """Number of batches an epoch."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_examples(self) -> int:
        """Number of examples an epoch."""
        return len(self.events) if self._examples is None else len(self._examples)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        """Yield the batches of an epoch from batch number ``start`` on.

        Starting at ``start`` gives exactly the batches that a full epoch gives from there.
        """
        order_rng = np.random.default_rng([self.seed, epoch, 0])
        on_disk = isinstance(self.events.item_rows, np.memmap)
        if on_disk:
            pieces = block_shuffle(self.num_examples, BLOCK_EVENTS, BUFFER_BLOCKS, order_rng)
        else:
            pieces = iter([order_rng.permutation(self.num_examples)])
        for number, picked in enumerate(_cut(pieces, self.batch_size)):
            if number >= start:
                events = picked if self._examples is None else self._examples[picked]
                yield self._gather(events, np.random.default_rng([self.seed, epoch, 1, number]))

    def _gather(self, picked: npt.NDArray[np.int64], rng: np.random.Generator) -> PairBatch:
        events = self.events
        query_rows, item_rows = events.query_rows[picked], events.item_rows[picked]
        history_rows = history_times = None
        if self.history_length is not None:
            own = picked if self._end_of is None else self._end_of[picked]
            starts = self._own_start[query_rows]
            if self.ordered:
                places, mask = windows_before(own, starts, self.history_length)
            else:
                ends = self._own_start[query_rows + 1]
                is_own = np.ones(len(picked), np.bool_)
                if events.labels is not None:
                    is_own = events.labels[picked] > 0
                places, mask = _other_places(own, starts, ends, is_own, self.history_length, rng)
            known = self._known
            rows = known.item_rows[places] if len(known) else places.astype(np.int32)
            if not self.ordered:
                mask &= rows != item_rows[:, None]
            history_rows = np.where(mask, rows, PADDING_ROW).astype(np.int32)
            if known.times is not None:
                history_times = np.where(mask, known.times[places], 0.0)
        return PairBatch(
            query_rows=query_rows,
            item_rows=item_rows,
            history_rows=history_rows,
            history_times=history_times,
            labels=None if events.labels is None else events.labels[picked],
            weights=None if events.weights is None else events.weights[picked],
        )


def block_shuffle(
    num: int, block: int, buffer_blocks: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield a shuffle of ``0..num-1`` in pieces, each made of ``buffer_blocks`` random whole blocks."""
    blocks = rng.permutation(-(-num // block))
    for first in range(0, len(blocks), buffer_blocks):
        chosen = blocks[first : first + buffer_blocks]
        piece = (chosen[:, None] * block + np.arange(block)).reshape(-1)
        yield rng.permutation(piece[piece < num])


def save_events(events: Interactions, folder: Path) -> None:
    """Write each column as a file that ``open_events`` maps without reading it."""
    folder.mkdir(parents=True, exist_ok=False)
    for name, column in vars(events).items():
        if column is not None:
            np.save(folder / f"{name}.npy", column)


def open_events(folder: Path) -> Interactions:
    """Return events whose columns stay on disk and are mapped into memory as they are read."""
    columns = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
    return Interactions(**columns)


def _cut(pieces: Iterator[npt.NDArray[np.int64]], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield runs of ``size`` from pieces of any length; the last may be shorter."""
    rest = np.zeros(0, np.int64)
    for piece in pieces:
        rest = np.concatenate([rest, piece]) if len(rest) else piece
        whole = len(rest) // size * size
        for start in range(0, whole, size):
            yield rest[start : start + size]
        rest = rest[whole:]
    if len(rest):
        yield rest


def _other_places(
    own: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    is_own: npt.NDArray[np.bool_],
    length: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return places of up to ``length`` of a query's other events, from a random point on, in a ring.

    ``is_own`` is False where the event itself is not among the query's known events.
    """
    size = ends - starts
    others = size - is_own
    spare = np.maximum(others - length, 0)
    shift = (rng.random(len(own)) * (spare + 1)).astype(np.int64) + is_own
    step = np.arange(length)
    places = (own - starts)[:, None] + shift[:, None] + step
    places = starts[:, None] + places % np.maximum(size, 1)[:, None]
    mask = step < others[:, None]
    return np.where(mask, places, 0), mask[:, ::1]
