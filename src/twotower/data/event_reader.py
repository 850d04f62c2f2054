"""Rows of a table of interactions -> events. What the columns mean is decided once, for all rows."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Float32s, Floats, Rows
from twotower.caller import argument, passing
from twotower.config import DataConfig
from twotower.data import columns
from twotower.data.columns import Role, Roles
from twotower.data.positions import checked_positions
from twotower.data.times import TimeForm, time_form
from twotower.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class EventBlock:
    """``n`` events as columns, before their ids become rows.

    Args:
        query_ids: ``(n,)`` int64 or string.
        item_ids: ``(n,)`` int64 or string.
        is_kept: ``(m,)`` bool, which of the rows that were read are the events; the others lack an id.
        times: ``(n,)`` float64 seconds since 1970, or None.
        labels: ``(n,)`` float32, 0 or 1, and 1 of events that are no target; or None.
        weights: ``(n,)`` float32 above 0 as the table has them, 1 of events that are no target; or None.
        positions: ``(n,)`` int32 from 1, and 0 of events that need none; or None.
        is_target: ``(n,)`` bool, whether an event is of a kind that is predicted; None where all are.
        frame: ``n`` rows of the table.
    """

    query_ids: pl.Series
    item_ids: pl.Series
    is_kept: Bools
    times: Floats | None
    labels: Float32s | None
    weights: Float32s | None
    positions: Rows | None
    is_target: Bools | None
    frame: pl.DataFrame


@dataclass(frozen=True)
class EventReader:
    """How the columns of a table of interactions are read.

    Args:
        roles: Which column is what.
        time_form: How times are written; None where no column is a time.
        config: The settings of the data.
    """

    roles: Roles
    time_form: TimeForm | None
    config: DataConfig

    @classmethod
    def of(cls, frame: pl.DataFrame, config: DataConfig) -> "EventReader":
        """Return how a table is read.

        Args:
            frame: The table, or the first rows of it.
            config: Which column is what, where that is stated.

        Raises:
            DataError: As ``find_roles`` and ``time_form`` raise it.
            ConfigError: A threshold is stated without a column of ratings.
        """
        given = {role: getattr(config, f"{role}_column") for role in Role}
        stated = {role: column for role, column in given.items() if column is not None}
        roles = columns.find_roles(frame, given=stated)
        form = None
        if roles.time is not None:
            form = time_form(frame[roles.time], what=_time_column(roles.time))
        if roles.label is None and config.positive_threshold is not None:
            raise ConfigError(
                "data.positive_threshold must go with a rating column, got "
                f"{config.positive_threshold} and none; pass {passing(label_column='NAME')}."
            )
        return cls(roles, form, config)

    def read(
        self, frame: pl.DataFrame, *, is_learnt: Bools | None = None, is_block: bool = False
    ) -> EventBlock:
        """Return the events of rows of the table.

        Args:
            frame: ``m`` rows, with the columns and types of the table that the reader was made of.
            is_learnt: ``(m,)`` bool, which rows may be learnt: only they need a position. None: all.
            is_block: Whether these are only some of the rows.

        Raises:
            DataError: A row cannot be read; the first one is named.
        """
        roles, drop = self.roles, self.config.drop_null_ids
        query_ids, has_query = columns.checked_ids(
            frame[roles.query], role=Role.QUERY, drop_null=drop, is_block=is_block
        )
        item_ids, has_item = columns.checked_ids(
            frame[roles.item], role=Role.ITEM, drop_null=drop, is_block=is_block
        )
        is_kept = has_query & has_item
        times = None
        if roles.time is not None and self.time_form is not None:
            what = _time_column(roles.time)
            times = self.time_form.seconds(frame[roles.time], what=what, where=is_kept)
        is_target = None
        is_asked = is_kept
        if roles.event is not None:
            columns.check_kinds(frame[roles.event].filter(pl.Series(is_kept)))
            is_target = columns.are_among(frame[roles.event], self.config.target_events)
            is_asked = is_kept & is_target
        # An event that is no target needs no label, weight or position; what is not learnt, no position.
        labels = weights = positions = None
        if roles.label is not None:
            labels = self._labels(frame[roles.label], is_asked)
        if roles.weight is not None:
            found = columns.checked_weights(frame[roles.weight], where=is_asked)
            weights = np.where(is_asked, found, np.float32(1))
        if roles.position is not None:
            is_shown = is_asked if is_learnt is None else is_asked & is_learnt
            positions = checked_positions(frame[roles.position], where=is_shown)
        block = EventBlock(
            query_ids, item_ids, is_kept, times, labels, weights, positions, is_target, frame
        )
        return block if is_kept.all() else _kept(block)

    def _labels(self, ratings: pl.Series, where: Bools) -> Float32s | None:
        """Return the label of each event, 1 for a positive; None where all are, whatever their rating."""
        threshold = self.config.positive_threshold
        if threshold is None and self.roles.label_kind == "label":
            labels = columns.checked_labels(ratings, where=where)
        else:
            found = columns.checked_ratings(ratings, where=where)
            if threshold is None:
                return None
            labels = (found >= threshold).astype(np.float32)
        return np.where(where, labels, np.float32(1))

    def check_targets(self, kinds: Collection[str]) -> None:
        """Refuse a table without one of the kinds of event that are to be predicted.

        Args:
            kinds: All kinds that the table has.

        Raises:
            DataError: One is not there.
        """
        if self.roles.event is not None:
            columns.check_wanted(kinds, self.config.target_events, self.roles.event)


def _kept(block: EventBlock) -> EventBlock:
    """Return the events of the rows that have both ids."""
    mask = pl.Series(block.is_kept)

    def cut(column: npt.NDArray[np.generic] | None) -> npt.NDArray[np.generic] | None:
        return None if column is None else column[block.is_kept]

    arrays: Mapping[str, npt.NDArray[np.generic] | None] = {
        name: cut(getattr(block, name))
        for name in ("times", "labels", "weights", "positions", "is_target")
    }
    return EventBlock(
        query_ids=block.query_ids.filter(mask),
        item_ids=block.item_ids.filter(mask),
        is_kept=block.is_kept,
        frame=block.frame.filter(mask),
        **arrays,  # type: ignore[arg-type]
    )


def check_rows(num_kept: int, num_rows: int) -> None:
    """Refuse a table of which no row has both ids.

    Raises:
        DataError: None has.
    """
    if not num_kept:
        raise DataError(
            f"interactions must hold rows with both ids, got {num_rows} rows that all lack one; "
            f"pass other columns as {argument('query_column')} and {argument('item_column')}."
        )


def _time_column(name: str) -> str:
    return f"time column {name!r}"
