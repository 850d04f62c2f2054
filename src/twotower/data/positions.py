"""The position at which each event's item was shown: read, checked, and made a weight.

A click at position 1 says less of relevance than one at position 8, where few look. Training weighs each
click by the inverse of how likely its position is looked at (``propensities.py``). Evaluation does not,
and its baselines neither: its figures are of clicks as they happened.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import passing
from twotower.data.columns import NAMED, Roles, plain_name, plain_names
from twotower.data.dataset import Dataset, Part
from twotower.data.propensities import MAX_WEIGHT, Propensities, harvested, power_law
from twotower.data.refusal import refuse_first

_NAMES = plain_names(NAMED["position"])
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
        "count positions from 1 and leave out rows without one, or pass another "
        f"{passing(position_column='NAME')}",
    )
    positions: npt.NDArray[np.int32] = np.minimum(values, _LAST).astype(np.int32)
    return positions


def is_position_name(name: str) -> bool:
    """Return whether a column's name may say where items were shown."""
    return plain_name(name) in _NAMES


def unstated_position(frame: pl.DataFrame, roles: Roles) -> list[str]:
    """Return a sentence on a column that may be the position and was not stated, or nothing.

    It is not read: the name is as often that of an item's place in a chart, or of a place in a playlist.

    Args:
        frame: The interactions.
        roles: Without a position.
    """
    if roles.label_kind != "label":  # what was shown and not clicked is what tells a result list
        return []
    for column in frame.columns:
        values = frame[column]
        if not is_position_name(column) or not values.dtype.is_integer():
            continue
        low = values.min()
        pairs = frame.select(pl.struct(roles.item, column).n_unique()).item()
        if isinstance(low, int) and low >= 1 and pairs > frame[roles.item].n_unique():
            told = f"{column!r} may be where items were shown; with {passing(position_column=column)} a "
            return [told + "click counts the more, the less its position is looked at."]
    return []


WHY_ASSUMED: dict[str, tuple[str, str]] = {
    "no labels": (
        "there is no label 0, of what was shown and not clicked",
        "没有标签 0（展示了但未点击）",
    ),
    "ratings": (
        "a rating below the threshold does not say that an item was passed over",
        "低于阈值的评分不表示被略过",
    ),
    "one position": (
        "no item with a click was shown to a query at two positions",
        "没有一个被点击的物品在同一查询的两个位置展示过",
    ),
}
"""Why propensities are no better known than by the power law, in English and in Chinese."""


@dataclass(frozen=True)
class Weighed:
    """What the training clicks of a data set, or of one of its views, weigh by their positions.

    Args:
        clicked: ``(E,)`` which events are such clicks.
        propensities: Of their positions.
        why_assumed: A key of ``WHY_ASSUMED``; None where they are estimated.
    """

    clicked: npt.NDArray[np.bool_]
    propensities: Propensities
    why_assumed: str | None


def propensities_of(dataset: Dataset, *, is_rated: bool) -> Weighed | None:
    """Return the propensities of a data set of one view; None where it has no position or no click.

    They are of the training part alone, estimated where it has labels 0 and an item was shown to a query
    at several positions, and else ``1 / position``.

    Args:
        dataset: Split.
        is_rated: Whether label 0 is a low rating, which does not say that an item was passed over.
    """
    events = dataset.interactions
    shown = (dataset.parts == Part.TRAIN) & (events.is_positive | events.is_negative)
    clicked = shown & events.is_positive
    if events.positions is None or not clicked.any():
        return None
    at = events.positions[shown]
    if is_rated or not (shown & ~clicked).any():
        why = "ratings" if (shown & ~clicked).any() else "no labels"
        return Weighed(clicked, power_law(at), why)
    pairs = events.query_rows[shown].astype(np.int64) << 32 | events.item_rows[shown]
    found = harvested(pairs, at, clicked[shown])
    return Weighed(clicked, found, None if found.num_clicks else "one position")


def weighed(dataset: Dataset, *, rated: Collection[str] = ()) -> Dataset:
    """Return the data set whose training clicks weigh the inverse propensity of their positions.

    ``min(1 / p_k, MAX_WEIGHT)`` is the position weight of a positive, and 1 that of all else. Each view has
    propensities of its own; a note tells them.

    Label 0 weighs 1 wherever it stood, though one far down was perhaps not looked at. A loss that learns
    from labels 0 is corrected in part only: binary cross-entropy is least at ``r / (1 + r - r p)``, with
    ``r`` the relevance and ``p`` the mean propensity of where the item stood, not at ``r``.

    Args:
        dataset: Split; without positions it is returned as it is.
        rated: Names of the views, or the data set's, whose label 0 is a low rating.
    """
    events = dataset.interactions
    if events.positions is None:
        return dataset
    weights, notes = np.ones(len(events), np.float32), list(dataset.notes)
    for view in dataset.all_views():
        found = propensities_of(view, is_rated=view.name in rated)
        if found is not None:
            clicked = found.clicked
            weights[clicked] = found.propensities.weights(events.positions[clicked])
            notes.append((f"{view.name}: " if dataset.views else "") + _told(found))
    return replace(
        dataset, interactions=replace(events, position_weights=weights), notes=tuple(notes)
    )


def examples_of(propensities: Propensities, form: str = "{value:.2g} at {position}") -> str:
    """Return a few propensities and their positions, each in a form."""
    places = np.unique(np.geomspace(1, len(propensities.values), _TOLD).round().astype(int)) - 1
    values, positions = propensities.values[places], propensities.positions[places]
    each = zip(values, positions, strict=True)
    return ", ".join(form.format(value=value, position=position) for value, position in each)


def _told(found: Weighed) -> str:
    """Return what the propensities are and where they come from, in a sentence."""
    whence = (
        f"estimated from {found.propensities.num_clicks:,} clicks on items that a query was shown at "
        "several positions"
        if found.why_assumed is None
        else f"assumed to be 1 / position, since {WHY_ASSUMED[found.why_assumed][0]}"
    )
    return (
        f"A click counts the more, the less its position is looked at, {whence}: "
        f"{examples_of(found.propensities)}; at most {MAX_WEIGHT:g} times as much as at the first."
    )
