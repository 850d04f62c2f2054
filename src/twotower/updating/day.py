"""The events of a new day for a bundle: its table is read as the training read its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s, Floats
from twotower.caller import argument
from twotower.config import DataConfig
from twotower.data.assembly import was_logarithm
from twotower.data.columns import Role
from twotower.data.event_reader import EventReader, check_rows
from twotower.data.input_files import read_files
from twotower.data.tables import Table
from twotower.errors import DataError
from twotower.serving.bundle import Contents
from twotower.vocab import Vocabulary


@dataclass(frozen=True, eq=False)
class Day:
    """``n`` positive events of a table, in its order.

    Args:
        query_ids: ``(n,)`` in the type of the bundle's ids.
        item_ids: ``(n,)`` the same.
        times: ``(n,)`` float64 seconds since 1970; None where the bundle's events have none.
        weights: ``(n,)`` float32, or None.
        is_target: ``(n,)`` bool, or None where all events are predicted.
        frame: ``(n, ...)`` the columns that the model reads of events.
    """

    query_ids: pl.Series
    item_ids: pl.Series
    times: Floats | None
    weights: Float32s | None
    is_target: Bools | None
    frame: pl.DataFrame

    def __len__(self) -> int:
        """Number of events."""
        return len(self.query_ids)

    def where(self, mask: Bools) -> "Day":
        """Return the events of ``mask``."""
        kept = pl.Series(mask)
        arrays: Mapping[str, Any] = {
            name: None if column is None else column[mask]
            for name, column in vars(self).items()
            if name in ("times", "weights", "is_target")
        }
        return Day(
            query_ids=self.query_ids.filter(kept),
            item_ids=self.item_ids.filter(kept),
            frame=self.frame.filter(kept),
            **arrays,
        )


def read_day(contents: Contents, interactions: Table) -> Day:
    """Return the positive events of a table.

    Args:
        contents: Of the bundle, with histories.
        interactions: The table, as ``train`` takes it.

    Raises:
        DataError: The table cannot be read, lacks a column that the training's table had, or its ids or
            values have another type.
    """
    frame = read_files(interactions, what="interactions")
    config = _stated(contents, frame)
    reader = EventReader.of(frame, config)
    _check_columns(contents, reader, frame)
    block = reader.read(frame)
    check_rows(len(block.frame), len(frame))
    kept = np.ones(len(block.frame), np.bool_) if block.labels is None else block.labels > 0
    if not kept.any():
        raise DataError(
            f"{argument('interactions')} must hold a positive event, got none in {len(frame):,} rows; "
            f"check the column {reader.roles.label!r}."
        )
    weights = None
    if contents.history_weights is not None and block.weights is not None:
        weights = block.weights
        if _are_logarithms(contents):
            is_asked = True if block.is_target is None else block.is_target
            weights = np.where(is_asked, np.log1p(weights), weights)
    day = Day(
        query_ids=_in_type(block.query_ids, contents.queries.ids, Role.QUERY),
        item_ids=_in_type(block.item_ids, contents.items.ids, Role.ITEM),
        times=None
        if contents.histories is None or contents.histories.times is None
        else block.times,
        weights=weights,
        is_target=block.is_target,
        frame=_read_of_events(contents, block.frame),
    )
    return day if kept.all() else day.where(kept)


def _stated(contents: Contents, frame: pl.DataFrame) -> DataConfig:
    """Return the settings of the data, with the id columns of the bundle where the table has them."""
    data = contents.config.data
    for name, column in (
        ("query_column", contents.queries.id_column),
        ("item_column", contents.items.id_column),
    ):
        if getattr(data, name) is None and column in frame.columns:
            data = replace(data, **{name: column})  # type: ignore[arg-type]  # both are names
    return data


def _check_columns(contents: Contents, reader: EventReader, frame: pl.DataFrame) -> None:
    """Refuse a table that lacks a column which the training's table had.

    Raises:
        DataError: It does.
    """
    histories, lacking = contents.histories, []
    if histories is not None and histories.times is not None and reader.roles.time is None:
        lacking.append("a column of times")
    if contents.history_weights is not None and reader.roles.weight is None:
        lacking.append("a column of weights")
    if contents.events is not None:
        names = contents.events.transforms.columns
        lacking += [f"the column {name!r}" for name in names if name not in frame.columns]
    if lacking:
        raise DataError(
            f"{argument('interactions')} must have {' and '.join(lacking)}, as the table of the training "
            f"had, got {', '.join(frame.columns)}; add it."
        )


def _are_logarithms(contents: Contents) -> bool:
    scale = contents.config.data.weight_scale
    if scale != "auto":
        return scale == "log"
    return was_logarithm(contents.provenance.get("notes", ()))


def _in_type(ids: pl.Series, known: Vocabulary, role: Role) -> pl.Series:
    """Return ids as the bundle writes them.

    Raises:
        DataError: One has another type.
    """
    keys = known.keys_of(ids)
    wrong = np.flatnonzero(keys.is_null().to_numpy())
    if len(wrong):
        raise DataError(
            f"{argument('interactions')} must have {role} ids like those of the bundle "
            f"({known.ids.dtype}), got {ids[int(wrong[0])]!r}; write the ids as in the table of "
            "the training."
        )
    return keys


def _read_of_events(contents: Contents, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns that the model reads of events, in the types of the bundle's.

    Raises:
        DataError: A column has values of another type.
    """
    if contents.events is None:
        return frame.select([])
    found = []
    for name, dtype in contents.events.frame.schema.items():
        try:
            found.append(frame[name].cast(dtype))
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{argument('interactions')} must have {name!r} of the type that the training's table had, "
                f"{dtype}, got {frame[name].dtype}; write the column alike."
            ) from error
    return pl.DataFrame(found)
