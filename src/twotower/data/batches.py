"""Batches: rows of training events in bulk, seeded and resumable; never one object a sample."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from twotower.arrays import Bools, Float32s, Floats, Ints, Rows
from twotower.data.dataset import Column, Interactions
from twotower.errors import ArgumentError, check_least
from twotower.histories import Histories, Windows
from twotower.vocab import PADDING_ROW

BLOCK_EVENTS = 4096
BUFFER_BLOCKS = 256
BY_TIME = 0.5
"""Share of the histories that end at the time of their question, where it is asked before its target."""
MAX_IMPRESSIONS = 64
"""Most items of an event's impressions that a batch holds."""


@dataclass(frozen=True, eq=False)
class PairBatch:
    """``B`` training events, each with its history as of that event.

    Args:
        query_rows: ``(B,)`` int32.
        item_rows: ``(B,)`` int32.
        history_rows: ``(B, L)`` int32, oldest first, right-aligned, ``PADDING_ROW`` where padded; None
            where histories are not read.
        history_times: ``(B, L)`` float64 seconds, or None.
        history_event_rows: ``(B, L)`` int32 where the features of the history's events stand, or None.
        labels: ``(B,)`` float32 0 or 1, or None where all are positives.
        weights: ``(B,)`` float32, or None where all are 1.
        impression_rows: ``(B, M)`` int32 items that were shown with the event and not taken, each
            once, right-aligned, ``PADDING_ROW`` where padded; ``M`` is that of the event with the most,
            in 1..``MAX_IMPRESSIONS``. None where the events have no impressions.
        asked: ``(B,)`` float64 seconds of the questions: the times of the events, or up to ``gap`` before
            them. None where events have no times.
    """

    query_rows: Rows
    item_rows: Rows
    history_rows: Rows | None = None
    history_times: Floats | None = None
    history_event_rows: Rows | None = None
    labels: Float32s | None = None
    weights: Float32s | None = None
    impression_rows: Rows | None = None
    asked: Floats | None = None

    def __len__(self) -> int:
        """Number of events."""
        return len(self.item_rows)

    @property
    def examples_of_lines(self) -> Ints:
        """``(B,)`` how many examples each line holds: one."""
        return np.ones(len(self), np.int64)

    @property
    def example_weights(self) -> Float32s | None:
        """``(B,)`` what each example weighs; None where all weigh 1."""
        return self.weights

    def take(self, lines: slice) -> "PairBatch":
        """Return some of the lines."""
        return replace(self, **taken(self, lines))


@dataclass(eq=False, repr=False)
class PairBatches:
    """Shuffled batches of training events. Two objects with equal arguments give equal batches.

    An epoch holds each event once. Columns in memory are shuffled by one permutation; columns that
    are mapped from disk are read in blocks of neighbouring events, which pass through a shuffle
    buffer of ``BUFFER_BLOCKS`` blocks, so that reading stays sequential.

    Args:
        events: The training events, all of them.
        batch_size: ``B``, at least 1; an epoch's last batch may be smaller.
        history_length: ``L``, at least 1, or None to leave histories out.
        ordered: Whether a history holds the events before the target. Otherwise it holds up to ``L`` of the
            query's other events, earlier or later, without the target's own item.
        seed: Seed of the shuffles.
        negatives: Whether events with label 0 are examples, too. They are never part of a history.
        next_events: At least 1. Each target is one of this many next events, all equally likely: its
            history ends before one of the last ``next_events`` events up to it. With 1 it ends right
            before the target.
        gap: Seconds, at least 0: a question is asked up to this time before its target, all times equally
            likely, and half of the histories end there; 0 asks at the time of the target. It needs an order
            and times.
        hidden: ``(num_item_rows,)`` bool, the items that some histories leave out; None leaves out none.
        hidden_share: Share of the histories that leave them out, of those that also hold other items.
        disliked: Whether the items that a query has a label 0 for count as impressions of its events.

    Raises:
        ValueError: ``batch_size``, ``history_length`` or ``next_events`` is below 1, or ``gap`` below 0.

    Source: Ji et al., TOIS 2023 (a model is asked at a moment of global time, for what comes after it).
    """

    events: Interactions
    _: KW_ONLY
    batch_size: int
    history_length: int | None
    ordered: bool
    seed: int
    negatives: bool = False
    next_events: int = 1
    gap: float = 0.0
    hidden: Bools | None = None
    hidden_share: float = 0.0
    disliked: bool = False

    def __post_init__(self) -> None:
        lengths = {"history_length": self.history_length, "next_events": self.next_events}
        check_least(1, batch_size=self.batch_size, **lengths)
        if not 0 <= self.gap < np.inf:
            raise ArgumentError(f"gap must be finite and at least 0, got {self.gap:g}.")
        events = self.events
        self._beside = events.disliked() if self.disliked else events.impressions
        positive, self._is_read = events.is_positive, events.is_read
        self._known = events
        self._end_of: Ints | None = None  # None where all are read
        if not self._is_read.all():
            self._known = replace(events, impressions=None).where(self._is_read)
            # Where each event stands among those that are read: its history ends there.
            self._end_of = np.cumsum(self._is_read) - self._is_read
        is_example = positive | (events.is_negative if self.negatives else False)
        self._examples: Ints | None = None  # None where every event is one
        if not is_example.all():
            self._examples = np.flatnonzero(is_example)

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
        rng = np.random.default_rng([self.seed, epoch, 0])
        if isinstance(self.events.item_rows, np.memmap):
            pieces = block_shuffle(self.num_examples, BLOCK_EVENTS, BUFFER_BLOCKS, rng)
        else:
            pieces = iter([rng.permutation(self.num_examples)])
        for number, picked in enumerate(_cut(pieces, self.batch_size)):
            if number >= start:
                events = picked if self._examples is None else self._examples[picked]
                yield self._gather(events, epoch, number)

    def _gather(self, picked: Ints, epoch: int, number: int) -> PairBatch:
        events = self.events
        query_rows, item_rows = events.query_rows[picked], events.item_rows[picked]

        def rng(purpose: int) -> np.random.Generator:
            return np.random.default_rng([self.seed, epoch, purpose, number])

        history: Windows | None = None
        asked = None if events.times is None else events.times[picked]
        if asked is not None and self.gap:
            asked = asked - rng(6).random(len(picked)) * self.gap
        if self.history_length is not None and self.ordered:
            ends = picked if self._end_of is None else self._end_of[picked]
            if self.next_events > 1:
                ends = self._drawn_ends(ends, query_rows, rng(3))
            if asked is not None and self.gap:
                at_its_time = rng(7).random(len(picked)) < BY_TIME
                ends = np.where(at_its_time, self._ends_at(asked, ends, query_rows), ends)
            history = self._earlier(ends, query_rows, self.history_length)
            if asked is not None and self.gap and history.times is not None:
                # No question is asked before an event that its history holds.
                last = np.where(history.rows[:, -1] != PADDING_ROW, history.times[:, -1], -np.inf)
                asked = np.maximum(asked, last)
        elif self.history_length is not None:
            history = self._others(picked, query_rows, item_rows, self.history_length, rng(1))
        if history is not None and self.hidden is not None and self.hidden_share:
            # What is hidden may be a negative, as for whom it is not known to have it at all.
            is_hidden = self.hidden[history.rows]
            is_hiding = rng(5).random(len(picked)) < self.hidden_share
            is_hiding &= ((history.rows != PADDING_ROW) & ~is_hidden).any(axis=1)
            history = _without(history, is_hiding[:, None] & is_hidden)
        impression_rows = None
        if self._beside is not None:
            places = query_rows if self.disliked else picked
            impression_rows = _shown(self._beside, places, rng(2))
        return PairBatch(
            query_rows=query_rows,
            item_rows=item_rows,
            history_rows=None if history is None else history.rows,
            history_times=None if history is None else history.times,
            history_event_rows=None if history is None else history.event_rows,
            labels=None if events.labels is None else events.labels[picked],
            weights=None if events.weights is None else events.weights[picked],
            impression_rows=impression_rows,
            asked=asked,
        )

    def _drawn_ends(self, ends: Ints, query_rows: Rows, rng: np.random.Generator) -> Ints:
        """Return ends of histories: before one of the last ``next_events`` events up to a target."""
        before = np.minimum(ends - self._known.offsets[query_rows] + 1, self.next_events)
        earlier: Ints = ends - (rng.random(len(ends)) * before).astype(np.int64)
        return earlier

    def _ends_at(self, moments: Floats, ends: Ints, query_rows: Rows) -> Ints:
        """Return where the read events before a moment end, none of them after ``ends``: ``(B,)``."""
        known = self._known
        assert known.times is not None
        low, high = known.offsets[query_rows], ends
        while (is_open := low < high).any():  # a binary search in all histories at once
            middle = (low + high) // 2
            is_before = is_open & (known.times[np.minimum(middle, len(known) - 1)] < moments)
            low = np.where(is_before, middle + 1, low)
            high = np.where(is_open & ~is_before, middle, high)
        return low

    def _earlier(self, ends: Ints, query_rows: Rows, length: int) -> Windows:
        """Return the last ``length`` read events before ``ends``."""
        known = self._known
        firsts = ends - length
        is_padding = np.arange(length) < (known.offsets[query_rows] - firsts)[:, None]
        rows = _windows(known.item_rows, firsts, is_padding)
        return _beside(rows, known, lambda column: _windows(column, firsts, is_padding))

    def _others(
        self, picked: Ints, query_rows: Rows, item_rows: Rows, length: int, rng: np.random.Generator
    ) -> Windows:
        """Return up to ``length`` of each query's events that are read, never the own item."""
        known = self._known
        own = picked if self._end_of is None else self._end_of[picked]
        is_own = self._is_read[picked]
        starts, ends = known.offsets[query_rows], known.offsets[query_rows + 1]
        places, mask = _other_places(own, starts, ends, is_own, length, rng)

        def gathered(column: npt.NDArray[Column]) -> npt.NDArray[Column]:
            values = column[places] if len(known) else np.zeros(places.shape, column.dtype)
            np.copyto(values, np.zeros((), column.dtype), where=~mask)
            return values

        windows = _beside(gathered(known.item_rows), known, gathered)
        is_again = windows.rows == item_rows[:, None]
        return _without(windows, is_again) if is_again.any() else windows


def taken(batch: Any, lines: slice) -> dict[str, Any]:
    """Return some lines of each column of a batch, by its name; None stays None."""
    columns = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return {name: None if values is None else values[lines] for name, values in columns.items()}


def _beside(
    rows: Rows, source: Interactions | Windows, cut: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Windows:
    """Return windows of ``rows``, beside them what else is known of their events, cut in one way."""
    times, event_rows = source.times, source.event_rows
    return Windows(
        rows=rows,
        times=None if times is None else cut(times),
        event_rows=None if event_rows is None else cut(event_rows),
    )


def _without(windows: Windows, is_hidden: Bools) -> Windows:
    """Return windows without some of their events, right-aligned again."""
    lines = np.flatnonzero(is_hidden.any(axis=1))
    is_left = (windows.rows[lines] != PADDING_ROW) & ~is_hidden[lines]
    order = np.argsort(is_left, axis=1, kind="stable")

    def kept(column: npt.NDArray[Column]) -> npt.NDArray[Column]:
        left = np.where(is_left, column[lines], np.zeros((), column.dtype))
        values = column.copy()
        values[lines] = np.take_along_axis(left, order, axis=1)
        return values

    return _beside(kept(windows.rows), windows, kept)


def block_shuffle(
    num: int, block: int, buffer_blocks: int, rng: np.random.Generator
) -> Iterator[Ints]:
    """Yield a shuffle of ``0..num-1`` in pieces, each made of random whole blocks.

    A piece has up to ``buffer_blocks`` blocks. All have the same number within one, since a small
    last piece would be a few queries' events only.
    """
    blocks = rng.permutation(-(-num // block))
    for chosen in np.array_split(blocks, max(1, -(-len(blocks) // buffer_blocks))):
        piece = (chosen[:, None] * block + np.arange(block)).reshape(-1)
        yield rng.permutation(piece[piece < num])


def _cut(pieces: Iterator[Ints], size: int) -> Iterator[Ints]:
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


def _windows(column: npt.NDArray[Column], firsts: Ints, is_padding: Bools) -> npt.NDArray[Column]:
    """Return ``(B, L)`` the ``L`` values of ``column`` from each ``first`` on, 0 where padded.

    A window is one contiguous piece of the column, which is copied several times faster than
    values that are picked one by one. A negative ``first`` must be padded up to place 0.
    """
    length = is_padding.shape[1]
    is_whole = firsts >= 0
    if is_whole.all() and len(firsts):
        values = sliding_window_view(column, length)[firsts]
    else:
        values = np.zeros(is_padding.shape, column.dtype)
        if is_whole.any():
            values[is_whole] = sliding_window_view(column, length)[firsts[is_whole]]
        if len(column):
            places = firsts[~is_whole, None] + np.arange(length)
            values[~is_whole] = column[np.maximum(places, 0)]
    np.copyto(values, np.zeros((), column.dtype), where=is_padding)
    return values


def _shown(sets: Histories, places: npt.NDArray[np.integer], rng: np.random.Generator) -> Rows:
    """Return ``(B, M)`` what was shown with each event, right-aligned, by the place of its set: ``(B,)``.

    Of more than fit, a run of their ring is taken that starts anywhere, so that each is equally likely
    to be in it.
    """
    starts, ends = sets.offsets[places], sets.offsets[places + 1]
    counts = ends - starts
    width = min(max(int(counts.max(initial=0)), 1), MAX_IMPRESSIONS)
    column = np.arange(width)
    firsts = ends - width
    rows = _windows(sets.item_rows, firsts, column < (starts - firsts)[:, None])
    cut = np.flatnonzero(counts > width)
    if len(cut):
        shift = (rng.random(len(cut)) * counts[cut]).astype(np.int64)
        within = shift[:, None] + column
        within -= (within >= counts[cut, None]) * counts[cut, None]
        rows[cut] = sets.item_rows[starts[cut, None] + within]
    return rows


def _other_places(
    own: Ints, starts: Ints, ends: Ints, is_own: Bools, length: int, rng: np.random.Generator
) -> tuple[Ints, Bools]:
    """Return places of up to ``length`` of a query's other events: a run of their ring, right-aligned.

    The others are a ring that begins after the event; the run starts anywhere on it, so that each
    other event is equally likely to be in it. ``is_own`` is False where the event itself is not
    among the query's known events.
    """
    size = (ends - starts).astype(np.int32)  # int32 halves the time of all that follows
    others = size - is_own
    run = np.minimum(others, length)
    shift = (rng.random(len(own)) * others).astype(np.int32)
    column = np.arange(length, dtype=np.int32)
    first = shift - (length - run)  # of the ring of the others; negative where padded
    mask = column >= (length - run)[:, None]
    # A run passes the end of either ring once at most: a subtraction does for a slow remainder.
    places = ((own - starts).astype(np.int32) + is_own + first)[:, None] + column  # (B, L)
    places -= (column >= (others - first)[:, None]) * others[:, None]
    places -= (places >= size[:, None]) * size[:, None]
    places *= mask
    return places + (starts * (size > 0))[:, None], mask
