"""``Dataset``: interactions as columns, a table per side, and the split that assigns each event."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Float32s, Floats, Ints, Rows, distinct
from twotower.data import mapped
from twotower.errors import ArgumentError
from twotower.features.forms import Form
from twotower.features.schema import Side, reads_as_text
from twotower.histories import Histories
from twotower.vocab import Vocabulary, rows_of_lines

Column = TypeVar("Column", bound=np.generic)


class Part(IntEnum):
    """What a split uses an event for."""

    UNUSED = 0
    TRAIN = 1
    VALID = 2
    TEST = 3
    CONTEXT = 4
    """The start of a held-out session: part of its history, and never learnt from."""


SEARCH_EVENTS = 5
"""Queries that are searches have fewer events than this on average: their text says more than a history."""

MOST_SCORES = 20_000_000_000
"""Scores of a method's evaluation, for one core about 80 seconds. Of more queries a sample is ranked."""
LEAST_CASES = 10_000
"""Queries that are ranked in any case: with so many an interval is narrow."""

MOST_SCORES_OF_CHOICE = 5_000_000_000
"""Scores of a choice of a baseline's settings by validation, for the most candidates that one has."""
MOST_CANDIDATES = 50
CHOICE_CASES = (300, 2_000)
"""Validation queries on which settings are chosen: at least, and at most."""

KNOWN = (Part.TRAIN, Part.VALID, Part.CONTEXT)
"""Parts whose events are in a query's history when the test begins."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events as columns, sorted by (query row, time, input order).

    Args:
        query_rows: ``(E,)`` int32.
        item_rows: ``(E,)`` int32.
        offsets: ``(num_query_rows + 1,)`` int64; the events of query row ``r`` are
            ``offsets[r]:offsets[r + 1]``.
        times: ``(E,)`` float64 seconds since 1970, or None.
        labels: ``(E,)`` float32, 0 or 1, or None where every event is a positive. An event that is no
            target has label 1.
        weights: ``(E,)`` float32 above 0, or None where all are 1.
        positions: ``(E,)`` int32 from 1, the position at which the item was shown, 0 for an event that
            needs none; None where positions are not known.
        position_weights: ``(E,)`` float32, at least 1, by which training's loss multiplies the weights;
            nothing else reads them. None where all are 1; see ``positions.weighed``.
        impressions: ``E`` sets of the items that were shown with each event and not taken, or None
            where they are not known. Another event of the query may have taken one of them.
        event_rows: ``(E,)`` int32 where the features of each event stand; see ``Histories``.
        is_target: ``(E,)`` bool, whether the model predicts the event; the others, by their kind or their
            view, are part of histories only. None where all events are targets.
    """

    query_rows: Rows
    item_rows: Rows
    offsets: Ints
    times: Floats | None = None
    labels: Float32s | None = None
    weights: Float32s | None = None
    positions: Rows | None = None
    position_weights: Float32s | None = None
    impressions: Histories | None = None
    event_rows: Rows | None = None
    is_target: Bools | None = None

    def __len__(self) -> int:
        """Number of events."""
        return len(self.item_rows)

    @property
    def is_positive(self) -> Bools:
        """Which events are targets with a positive label: ``(E,)`` bool."""
        return self.is_read if self.is_target is None else self.is_read & self.is_target

    @property
    def is_read(self) -> Bools:
        """Which events are part of histories: all with a positive label: ``(E,)`` bool."""
        return np.ones(len(self), np.bool_) if self.labels is None else self.labels > 0

    @property
    def is_negative(self) -> Bools:
        """Which events are targets with label 0: ``(E,)`` bool."""
        negative = ~self.is_read
        return negative if self.is_target is None else negative & self.is_target

    def disliked(self) -> Histories:
        """Return the items, each once, that a query row has a label 0 for and no other event."""
        size = int(self.item_rows.max(initial=0)) + 1
        pairs = self.query_rows.astype(np.int64) * size + self.item_rows
        negative = self.is_negative
        pairs = np.setdiff1d(pairs[negative], pairs[~negative])
        offsets = np.searchsorted(pairs // size, np.arange(len(self.offsets)))
        return Histories(offsets, (pairs % size).astype(np.int32))

    def where(self, mask: Bools) -> "Interactions":
        """Return the events of ``mask``, in their order, over the same query rows."""
        num = int(mask.sum())
        if num == len(self):
            return self
        offsets = np.concatenate([[0], np.cumsum(counted(self.offsets, mask))])
        columns = dict(vars(self)) | {"offsets": offsets}
        shown = columns.pop("impressions")
        if shown is not None:
            columns["impressions"] = shown.take(np.flatnonzero(mask))
        # Of many events that are on disk, those of a part are on disk, too.
        is_large = mapped.is_mapped(self.item_rows) and num >= mapped.MAPPED_FROM
        for name, column in columns.items():
            if column is not None and name not in ("offsets", "impressions"):
                found = mapped.where(column, mask, num) if is_large else np.asarray(column[mask])
                columns[name] = found
        return Interactions(**columns)

    def between(self, low: int, high: int) -> "Interactions":
        """Return the events of the query rows from ``low`` up to ``high``, which are counted from 0."""
        start, end = int(self.offsets[low]), int(self.offsets[high])
        own = slice(start, end)
        shown = self.impressions
        columns: dict[str, Any] = {
            name: None if column is None else np.asarray(column[own])
            for name, column in vars(self).items()
            if name not in ("offsets", "impressions")
        }
        columns["query_rows"] = columns["query_rows"] - np.int32(low)
        columns["offsets"] = np.asarray(self.offsets[low : high + 1]) - start
        columns["impressions"] = None if shown is None else shown.take(own)
        return Interactions(**columns)

    def as_learnt(self) -> "Interactions":
        """Return the events with the weights that training's loss gives them."""
        by_position = self.position_weights
        if by_position is None:
            return self
        weights = by_position if self.weights is None else self.weights * by_position
        return replace(self, weights=weights, position_weights=None)

    def histories(self) -> Histories:
        """Return all events of each query row as its history."""
        return Histories(self.offsets, self.item_rows, self.times, self.event_rows)


def sorted_events(
    query_rows: Rows, num_query_rows: int, *, by_time: bool, **columns: Any
) -> tuple[Interactions, Ints]:
    """Return events sorted by their query, and that order of theirs: ``(E,)``.

    Args:
        query_rows: ``(E,)`` int32.
        num_query_rows: All rows of queries, the reserved ones included.
        by_time: Whether ``times`` sort the events of a query; otherwise they stay in their order.
        columns: The other fields of ``Interactions``; each may be None.
    """
    order = np.lexsort((columns["times"], query_rows) if by_time else (query_rows,))
    offsets = np.searchsorted(query_rows[order], np.arange(num_query_rows + 1))
    return _with_columns({"query_rows": query_rows, **columns}, order, offsets), order


def query_blocks(offsets: Ints, num_events: int) -> Iterator[tuple[int, int]]:
    """Yield runs of neighbouring query rows, from the first up to the second, with few events each.

    Args:
        offsets: ``(Q + 1,)`` as ``Interactions`` has them.
        num_events: Most events of a run; a query with more is a run by itself.
    """
    low, num_rows = 0, len(offsets) - 1
    while low < num_rows:
        high = int(np.searchsorted(offsets, int(offsets[low]) + num_events, side="right")) - 1
        high = min(max(high, low + 1), num_rows)
        yield low, high
        low = high


def counted(offsets: Ints, mask: Bools) -> Ints:
    """Return how many events of ``mask`` each query row has: ``(Q,)`` int64.

    Args:
        offsets: ``(Q + 1,)`` as ``Interactions`` has them.
        mask: ``(E,)``.
    """
    counts = np.zeros(len(offsets) - 1, np.int64)
    for low, high in query_blocks(offsets, mapped.BLOCK_VALUES):
        own = np.asarray(offsets[low : high + 1])
        before = np.concatenate([[0], np.cumsum(mask[own[0] : own[-1]])])
        counts[low:high] = np.diff(before[own - own[0]])
    return counts


def _with_columns(columns: dict[str, Any], places: Ints, offsets: Ints) -> Interactions:
    shown = columns.pop("impressions", None)
    return Interactions(
        **{name: column[places] for name, column in columns.items() if column is not None},
        offsets=offsets,
        impressions=None if shown is None else shown.take(places),
    )


@dataclass(frozen=True, eq=False)
class Cases:
    """Queries of an evaluation, each with its history and its relevant items.

    Args:
        query_rows: ``(n,)`` int32, distinct, unless each row of a test is a case of its own.
        histories: ``n`` histories as of each case's moment. Their items are removed from the answer.
        targets: ``n`` sets of relevant items, none empty.
        times: ``(n,)`` float64, the moment of the first target, or None.
        weights: ``(n,)`` float64, at least 0, with which means count each case; None counts all alike.
    """

    query_rows: Rows
    histories: Histories
    targets: Histories
    times: Floats | None = None
    weights: Floats | None = None

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.query_rows)

    @property
    def questions(self) -> Histories:
        """The histories, each with the moment of its question: that of the first target."""
        return replace(self.histories, asked=self.times)

    @property
    def owners(self) -> Rows | None:
        """The query of each case where some query has several, else None."""
        rows = self.query_rows
        return rows if len(distinct(rows)) < len(rows) else None

    def query_name(self, case: int, query_ids: Vocabulary | None) -> str:
        """Return how an error message names the query of a case: by its id, or by its row without ids."""
        row = self.query_rows[case : case + 1]
        return f"query row {row[0]}" if query_ids is None else f"query {query_ids.ids_of(row)[0]!r}"

    def by_target(self) -> "Cases":
        """Return one case for each target, with the history of its query: a row of the test each."""
        rows = self.take(self.targets.owners)
        return replace(rows, targets=Histories(np.arange(len(rows) + 1), self.targets.item_rows))

    def take(self, positions: npt.NDArray[np.integer] | slice) -> "Cases":
        """Return the cases at ``positions``."""
        times = None if self.times is None else self.times[positions]
        histories, targets = self.histories.take(positions), self.targets.take(positions)
        weights = None if self.weights is None else self.weights[positions]
        return Cases(self.query_rows[positions], histories, targets, times, weights)


@dataclass(frozen=True, eq=False)
class EntityTable:
    """One side's entities: their ids and all their columns.

    Args:
        ids: The vocabulary; row ``r`` is line ``r - FIRST_ROW`` of ``frame``.
        frame: One line an entity, in the vocabulary's order, with the id column and every other.
        id_column: Name of the id column.
        forms: How the cells of columns were written before they were read, where that was as another type.
    """

    ids: Vocabulary
    frame: pl.DataFrame
    id_column: str
    forms: Mapping[str, Form] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of entities."""
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class ViewItems:
    """The items of one view, of several that share the queries.

    Args:
        offered: ``(num_item_rows,)`` bool of its items.
        repeats: Whether a query may be given one of them again.
    """

    offered: Bools
    repeats: bool


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Interactions, the two entity tables, and what each event is used for.

    Args:
        queries: The query side.
        items: The item side.
        interactions: All events.
        parts: ``(E,)`` uint8 of ``Part``; all ``TRAIN`` before a split.
        ordered: Whether the events of a query have an order. Without one, a history is the query's
            *other* events, not the earlier ones.
        repeats: Whether an item may be recommended to a query that had it before.
        event_columns: Every column of the interactions table that holds no ids, in the events'
            order. A history reads those that ``features.event`` names.
        name: What the data is called in reports.
        notes: The decisions that were made on the way, one sentence each, for people.
        offered: ``(num_item_rows,)`` bool, the items that may be recommended; the others are part of
            histories only. None offers all items.
        views: Name -> view, where the items are of several kinds.
        by_period: Whether the test holds all that follows a moment, of known queries and of new ones.
    """

    queries: EntityTable
    items: EntityTable
    interactions: Interactions
    parts: npt.NDArray[np.uint8]
    ordered: bool
    repeats: bool
    event_columns: pl.DataFrame
    name: str = "data"
    notes: tuple[str, ...] = field(default=())
    offered: Bools | None = None
    views: Mapping[str, ViewItems] = field(default_factory=dict)
    by_period: bool = False
    _of_parts: dict[tuple[Part, ...], Interactions] = field(
        default_factory=dict, init=False, repr=False
    )

    def __repr__(self) -> str:
        counts = {part.name.lower(): int((self.parts == part).sum()) for part in Part}
        split = ", ".join(f"{part} {count:,}" for part, count in counts.items() if count)
        return f"Dataset({self.name!r}: {self.sizes}; {split})"

    @property
    def sizes(self) -> str:
        """How many events, queries and items there are, in words."""
        sides = f"{len(self.queries):,} queries, {len(self.items):,} items"
        return f"{len(self.interactions):,} events, {sides}"

    @property
    def sides(self) -> dict[Side, EntityTable]:
        """Both tables, that of the queries first."""
        return {"query": self.queries, "item": self.items}

    @property
    def num_items(self) -> int:
        """Number of items that may be recommended."""
        return len(self.items) if self.offered is None else int(self.offered.sum())

    def view(self, name: str) -> "Dataset":
        """Return one view: the model predicts and recommends its items; the other events stay in histories.

        Raises:
            ValueError: There is no such view.
        """
        if name not in self.views:
            raise ArgumentError(
                f"name must be a view ({', '.join(self.views) or 'none'}), got {name!r}."
            )
        own = self.views[name]
        events = self.interactions
        is_target = own.offered[events.item_rows]
        if events.is_target is not None:
            is_target &= events.is_target
        return replace(
            self,
            interactions=replace(events, is_target=is_target),
            name=name,
            repeats=own.repeats,
            offered=own.offered,
            views={},
        )

    def all_views(self) -> "tuple[Dataset, ...]":
        """Return each view, or the data set itself where it has no views."""
        return tuple(self.view(name) for name in self.views) or (self,)

    def with_parts(self, parts: npt.NDArray[np.uint8], note: str) -> "Dataset":
        """Return the data set with another split."""
        return replace(self, parts=parts.astype(np.uint8), notes=(*self.notes, note))

    @property
    def has_searches(self) -> bool:
        """Whether queries are searches: ids of several words, no order, and few events each."""
        if self.ordered:
            return False
        events = self.interactions
        counts = counted(events.offsets, events.is_positive)
        is_short = counts.sum() < SEARCH_EVENTS * (counts > 0).sum()
        return bool(is_short) and reads_as_text(self.queries.ids.ids)

    def part(self, *parts: Part) -> Interactions:
        """Return the events of ``parts``, in their order."""
        if parts not in self._of_parts:
            self._of_parts[parts] = self.interactions.where(self.are_in(*parts))
        return self._of_parts[parts]

    def are_in(self, *parts: Part) -> Bools:
        """Return which events are in one of ``parts``: ``(E,)``."""
        found = np.zeros(len(self.parts), np.bool_)
        for part in parts:
            found |= self.parts == part
        return found

    def positives(self, *parts: Part) -> Interactions:
        """Return the positive events of ``parts``, in their order."""
        events = self.part(*parts)
        return events.where(events.is_positive)

    def cases(self, part: Part) -> Cases:
        """Return one case for each query with a positive event in ``part``.

        The history holds the query's events of the earlier parts only that a history reads (of train for
        ``VALID``; of train and validation for ``TEST``; of a held-out session its start), whatever their
        times: with leave-last-out and temporal splits those come before the targets by construction. Events
        of another view that have times are known up to the moment of the first target. An item that stands
        twice among a query's targets counts once. Where the test is of a period, the means of validation
        count new and known queries in the test's shares.

        Of more than ``most_cases`` queries these are a sample, the same for all methods.
        """
        if part not in (Part.VALID, Part.TEST):
            raise ArgumentError(f"part must be VALID or TEST, got {part!r}.")
        earlier = (Part.TRAIN, Part.CONTEXT) if part == Part.VALID else KNOWN
        events = replace(self.interactions, impressions=None)  # no case reads what was shown
        counts = counted(events.offsets, (self.parts == part) & events.is_positive)
        query_rows, most = np.flatnonzero(counts).astype(np.int32), self.most_cases
        parts = self.parts
        if len(query_rows) > most:
            drawn = np.random.default_rng([0, part]).choice(len(query_rows), most, replace=False)
            query_rows = query_rows[np.sort(drawn)]
            is_drawn = np.zeros(len(counts), np.bool_)
            is_drawn[query_rows] = True
            is_theirs = np.repeat(is_drawn, np.diff(events.offsets))
            events, parts = events.where(is_theirs), parts[is_theirs]
        positive = events.is_positive
        wanted = events.where((parts == part) & positive)
        times = None
        if wanted.times is not None:
            # The first in time, which need not stand first where time does not give the order.
            first = wanted.offsets[:-1][query_rows]
            times = np.minimum.reduceat(wanted.times, first) if len(first) else wanted.times
        is_known = np.isin(parts, earlier) & events.is_read
        if self.offered is not None and times is not None and events.times is not None:
            moments = np.full(len(events.offsets), np.inf)
            moments[query_rows] = times
            is_own = self.offered[events.item_rows]
            is_known &= is_own | (events.times <= moments[events.query_rows])
        known = events.where(is_known)
        asked = wanted.histories().take(query_rows)
        histories = known.histories().take(query_rows)
        weights = None
        if part == Part.VALID and self.by_period:
            weights = self._weights_as_in_test(histories.lengths == 0)
        return Cases(
            query_rows=query_rows,
            histories=histories,
            targets=Histories.of_pairs(asked.owners, asked.item_rows, len(asked)),
            times=times,
            weights=weights,
        )

    @property
    def most_cases(self) -> int:
        """How many queries are ranked at most in an evaluation, by the size of the catalogue."""
        return max(LEAST_CASES, MOST_SCORES // max(1, self.num_items))

    def sampled(self, part: Part) -> str | None:
        """Return a sentence on the sample of a part's queries that is ranked; None where all are."""
        is_asked = (self.parts == part) & self.interactions.is_positive
        num = int((counted(self.interactions.offsets, is_asked) > 0).sum())
        if num <= self.most_cases:
            return None
        return (
            f"{part.name.lower()}: a sample of {self.most_cases:,} of {num:,} queries is ranked, the same "
            "for every method."
        )

    @property
    def choice_cases(self) -> int:
        """Most validation queries on which a baseline's settings are chosen, by the catalogue's size."""
        least, most = CHOICE_CASES
        affordable = MOST_SCORES_OF_CHOICE // (MOST_CANDIDATES * max(1, self.num_items))
        return min(most, max(least, affordable))

    def choice_note(self) -> str | None:
        """Return a sentence on the validation queries of such choices; None for a small catalogue."""
        is_asked = (self.parts == Part.VALID) & self.interactions.is_positive
        num = int((counted(self.interactions.offsets, is_asked) > 0).sum())
        if self.choice_cases >= min(num, CHOICE_CASES[1]):
            return None
        return (
            f"Settings of baselines are chosen on {self.choice_cases:,} of {num:,} validation queries, "
            "since there are many items."
        )

    def share_of_new(self, part: Part) -> float:
        """Return the share of a part's queries of which no earlier part has an event that is read."""
        events = self.interactions
        earlier = (Part.TRAIN, Part.CONTEXT) if part == Part.VALID else KNOWN
        is_known = counted(events.offsets, self.are_in(*earlier) & events.is_read) > 0
        is_asked = counted(events.offsets, (self.parts == part) & events.is_positive) > 0
        return float((~is_known[is_asked]).mean()) if is_asked.any() else 0.0

    def _weights_as_in_test(self, is_new: Bools) -> Floats | None:
        """Return weights with which new cases count as much as in the test; None where all are alike."""
        ours, wanted = float(is_new.mean()) if len(is_new) else 0.0, self.share_of_new(Part.TEST)
        if not 0 < ours < 1:
            return None
        return np.where(is_new, wanted / ours, (1 - wanted) / (1 - ours))


def with_event_rows(dataset: Dataset) -> Dataset:
    """Return the data set whose events know where their line of ``event_columns`` stands."""
    rows = rows_of_lines(len(dataset.interactions))
    return replace(dataset, interactions=replace(dataset.interactions, event_rows=rows))
