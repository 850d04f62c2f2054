"""The position at which each event's item was shown: read, checked, and made part of the weights.

A click at position 1 says less of relevance than one at position 8, where few look. Training weighs each
click by the inverse of how likely its position is looked at (``propensities.py``). Evaluation does not:
its figures are of clicks as they happened.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.data.columns import Roles, plain_name
from twotower.data.dataset import Dataset, Part
from twotower.data.propensities import MAX_WEIGHT, Propensities, harvested, power_law
from twotower.data.refusal import refuse_first

_NAMES = """position rank click_position click_rank item_position doc_position display_position
    display_rank shown_position result_position result_rank serp_position 位置 排名"""
_TOLD = 5
_LAST = np.iinfo(np.int32).max


def checked_positions(series: pl.Series) -> npt.NDArray[np.int32]:
    """Return positions: ``(n,)`` int32 from 1; what no int32 can hold is its greatest.

    Raises:
        DataError: A value is null, no number, no whole number or below 1; the first such row is named.
    """
    values = np.full(len(series), np.nan)
    if series.dtype == pl.String or series.dtype.is_numeric():
        values = series.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    is_whole = np.isfinite(values) & (values >= 1)
    is_whole &= np.floor(values, where=is_whole, out=np.zeros(len(values))) == values
    refuse_first(
        series,
        ~is_whole,
        f"the position column {series.name!r}",
        "hold a whole number from 1",
        "count positions from 1 and leave out rows without one, or state another --position-column NAME",
    )
    positions: npt.NDArray[np.int32] = np.minimum(values, _LAST).astype(np.int32)
    return positions


def unstated_position(frame: pl.DataFrame, roles: Roles) -> list[str]:
    """Return a sentence on a column that may be the position and was not stated, or nothing.

    It is not read: the name is as often that of an item's place in a chart, or of a place in a playlist.

    Args:
        frame: The interactions.
        roles: Without a position.
    """
    if roles.label_kind != "label":  # what was shown and not clicked is what tells a result list
        return []
    names = {plain_name(name) for name in _NAMES.split()}
    for column in frame.columns:
        values = frame[column]
        if plain_name(column) not in names or not values.dtype.is_integer():
            continue
        low = values.min()
        pairs = frame.select(pl.struct(roles.item, column).n_unique()).item()
        if isinstance(low, int) and low >= 1 and pairs > frame[roles.item].n_unique():
            told = f"{column!r} may be where items were shown; with --position-column {column} a click "
            return [told + "counts the more, the less its position is looked at."]
    return []


def weighed(dataset: Dataset, *, rated: bool) -> Dataset:
    """Return the data set whose clicks weigh by the inverse propensity of their positions.

    A positive weighs ``min(1 / p_k, MAX_WEIGHT)`` times the weight that it has; label 0 keeps its own. All
    are divided by the mean weight of the training positives, which is then 1. Propensities are of the
    training part alone, estimated where it has labels 0 and an item was shown to a query at several
    positions, and else ``1 / position``; a note tells. Each view has propensities of its own.

    Args:
        dataset: Split; without positions it is returned as it is.
        rated: Whether label 0 is a low rating, which does not say that an item was passed over.
    """
    events = dataset.interactions
    if events.positions is None:
        return dataset
    weights = np.ones(len(events)) if events.weights is None else events.weights.astype(np.float64)
    is_train, notes = dataset.parts == Part.TRAIN, list(dataset.notes)
    for view in dataset.all_views():
        own = view.interactions
        asked = (own.is_positive | own.is_negative) & (events.positions > 0)
        clicked = asked & own.is_positive
        if not (clicked & is_train).any():
            continue
        shown = asked & is_train
        has_shown = bool((shown & ~clicked).any()) and not rated
        pairs = events.query_rows[shown].astype(np.int64) << 32 | events.item_rows[shown]
        found = power_law(events.positions[shown])
        if has_shown:
            found = harvested(pairs, events.positions[shown], clicked[shown])
        weights[clicked] *= found.weights(events.positions[clicked])
        weights[asked] /= weights[clicked & is_train].mean()
        why = "there is no label 0, of what was shown and not clicked"
        if rated:
            why = "a rating below the threshold does not say that an item was passed over"
        elif has_shown:
            why = "no item with a click was shown to a query at two positions"
        notes.append((f"{view.name}: " if dataset.views else "") + _told(found, why))
    return replace(
        dataset,
        interactions=replace(events, weights=weights.astype(np.float32)),
        notes=tuple(notes),
    )


def _told(found: Propensities, why_assumed: str) -> str:
    """Return what the propensities are and where they come from, in a sentence."""
    whence = (
        f"estimated from {found.num_clicks:,} clicks on items that a query was shown at several positions"
        if found.num_clicks
        else f"assumed to be 1 / position, since {why_assumed}"
    )
    places = np.unique(np.geomspace(1, len(found.values), _TOLD).round().astype(int)) - 1
    values = ", ".join(f"{found.values[p]:.2g} at {found.positions[p]}" for p in places)
    return (
        f"A click counts the more, the less its position is looked at, {whence}: {values}; "
        f"at most {MAX_WEIGHT:g} times as much as at the first."
    )
