"""The input of the query tower: what a bundle knows about queries, and what a caller says about them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.arrays import Floats
from twotower.caller import argument
from twotower.errors import ArgumentError
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.serving import arguments
from twotower.serving.arguments import TIME, Event, Id, Told, plain, seconds_of
from twotower.serving.bundle import Contents
from twotower.serving.live_items import LiveIds
from twotower.towers.encoding import to_tensors
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, rows_of_lines


@dataclass(frozen=True, eq=False)
class Described:
    """``n`` queries, as the query tower reads them and as a caller described them.

    Args:
        features: One array per query feature, with ``n`` rows.
        histories: Their ``n`` histories, each with the time of its question.
        events: One tensor per feature of events, in which ``histories`` has row numbers; None for the
            bundle's own table of events.
        told: What the caller said about the queries.
    """

    features: FeatureArrays
    histories: Histories
    events: dict[str, torch.Tensor] | None
    told: Told

    @property
    def notes(self) -> list[tuple[str, ...]]:
        """For each query, a sentence about the ids in its history that are not in the catalogue, if any."""
        given, known = self.told.histories, self.histories.lengths.tolist()
        if given is None:
            return [()] * len(known)
        return [unknown_ids(len(events), num) for events, num in zip(given, known, strict=True)]


class Queries:
    """The queries of a bundle, and new queries.

    Args:
        contents: What the bundle holds. Assign the new contents here when the catalogue changes.
        device: The device for features of events.
    """

    def __init__(self, contents: Contents, device: torch.device) -> None:
        self.contents = contents
        self._device = device

    @cached_property
    def features(self) -> FeatureArrays:
        """The transformed features of every query row, the reserved ones included."""
        table = self.contents.queries
        return table.transforms.apply_to_rows(table.frame)

    def rows_of(self, ids: Sequence[Id | None]) -> npt.NDArray[np.int32]:
        """Return the row of each id: ``(n,)``, ``UNKNOWN_ROW`` where there is none."""
        return np.maximum(self.contents.queries.ids.rows_of(plain(ids)), UNKNOWN_ROW)

    def described(self, told: Told, *, strict: bool = False) -> Described:
        """Return queries as the model reads them.

        Args:
            told: What a caller said about the queries.
            strict: Whether to refuse features that the bundle does not know. Otherwise they are ignored
                with a warning.

        Raises:
            ValueError: ``strict`` is set and a feature is unknown, or an event lacks an item or has an
                invalid time; or a question is asked before the last event of its history.
        """
        if told.features is not None:
            transforms = self.contents.queries.transforms
            arguments.check_columns(told.features, transforms, strict=strict)
        rows = self.rows_of(told.ids)
        if told.histories is None:
            histories, events = self.histories(rows), None
        else:
            histories, events = self.histories_of(told.histories)
        histories = replace(histories, asked=moments_of(told.at, histories))
        return Described(self._features_of(told, rows), histories, events, told)

    def histories_of(
        self, lists: list[list[Event]]
    ) -> tuple[Histories, dict[str, torch.Tensor] | None]:
        """Return histories that a caller gave, without items that are not in the catalogue.

        Args:
            lists: The events of each history, oldest first.

        Returns:
            The histories, with times if every event has one; and one tensor per feature of the events, or
            None if the model reads no such feature.

        Raises:
            ValueError: An event names no item, or its time is not a finite number.
        """
        items, events = self.contents.items, self.contents.events
        lines = [event if isinstance(event, Mapping) else {} for each in lists for event in each]
        ids = [_item_of(event, items.id_column) for each in lists for event in each]
        item_rows = items.ids.rows_of(ids)
        is_known = item_rows >= FIRST_ROW
        times = event_rows = tensors = None
        of_known = [line.get(TIME) for line, known in zip(lines, is_known, strict=True) if known]
        if of_known and None not in of_known:
            what = "the time of an event"
            times = np.array([seconds_of(line.get(TIME) or 0, what) for line in lines])
        if events is not None:
            columns = [arguments.column_of(name, lines) for name in events.transforms.columns]
            arrays = events.transforms.apply_to_rows(pl.DataFrame(columns))
            tensors = to_tensors(arrays, self._device)
            event_rows = rows_of_lines(len(lines))
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64)
        return Histories(offsets, item_rows, times, event_rows).where(is_known), tensors

    def _features_of(self, told: Told, rows: npt.NDArray[np.int32]) -> FeatureArrays:
        stored = {name: values[rows] for name, values in self.features.items()}
        queries = self.contents.queries
        is_new = rows == UNKNOWN_ROW
        # The text of an id, such as a search, describes the query.
        if is_new.any() and queries.transforms.reads_text_of(queries.id_column):
            by_id = queries.transforms.apply(arguments.new_ids(told.ids, queries.id_column))
            for name in stored:
                stored[name][is_new] = by_id[name][is_new]
        if told.features is None:
            return stored
        arrays = queries.transforms.apply(told.features.frame)
        for transform in queries.transforms.transforms:
            name, source = transform.feature.name, transform.feature.source
            lines = told.features.lines_with.get(source)
            if lines is not None:
                stored[name][lines] = arrays[name][lines]
        return stored

    def histories(self, rows: npt.NDArray[np.integer]) -> Histories:
        """Return the histories in the bundle, with the newest row of each item."""
        if self.contents.histories is None:
            return Histories.empty(len(rows))
        taken = self.contents.histories.take(rows)
        items = self.contents.items.ids
        if not isinstance(items, LiveIds):
            return taken
        return replace(taken, item_rows=items.newest(taken.item_rows))


def unknown_ids(num_given: int, num_known: int) -> tuple[str, ...]:
    """Return a sentence about the ids of a history that are not in the catalogue, or nothing.

    Args:
        num_given: Number of ids in the history.
        num_known: How many of them are in the catalogue.
    """
    num = num_given - num_known
    if not num:
        return ()
    if not num_known:
        which = "The one id" if num == 1 else f"None of the {num:,} ids"
        verb = "is not" if num == 1 else "is"
        return (f"{which} of the history {verb} in the catalogue, so the history says nothing.",)
    verb = "is" if num == 1 else "are"
    return (f"{num:,} of the {num_given:,} ids of the history {verb} not in the catalogue.",)


def _item_of(event: Event, item_column: str) -> Id:
    if not isinstance(event, Mapping):
        return event
    item_id: Any = event.get(item_column)
    if item_id is None:
        raise ArgumentError(
            f"each event of a history must name its item under {item_column!r}, got a line with "
            f"{', '.join(repr(key) for key in event) or 'nothing'}."
        )
    return plain([item_id])[0]  # type: ignore[no-any-return]


def moments_of(at: Sequence[float | None] | None, histories: Histories) -> Floats:
    """Return when each of ``n`` questions is asked, in seconds since 1970: ``(n,)`` float64.

    Args:
        at: What the caller said; now where that is None. A clock that is behind the last event is the
            caller's: the question then counts as asked at that event.
        histories: Of the ``n`` questions.

    Raises:
        ValueError: A time that was given lies before the last event of its history.
    """
    now = time.time()
    num = len(histories)
    moments = np.array([now if each is None else each for each in at or [None] * num], np.float64)
    if at is None or histories.times is None:
        return moments
    has_event = histories.lengths > 0
    last = np.full(num, -np.inf)
    last[has_event] = histories.times[histories.offsets[1:][has_event] - 1]
    is_given = np.array([each is not None for each in at], np.bool_)
    early = np.flatnonzero(is_given & (moments < last))
    if len(early):
        which = int(early[0])
        raise ArgumentError(
            f"{argument('at')} must not lie before the last event of the history, got "
            f"{moments[which]:.15g} where that is at {last[which]:.15g}; leave out the later events, or "
            "ask at a later time."
        )
    return moments
