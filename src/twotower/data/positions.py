"""The position at which each event's item was shown: read, checked, and made a weight.

A click at position 1 says less of relevance than one at position 8, where few look. In the position-based
model a click on item ``d`` of query ``q`` at position ``k`` has probability ``p_k * r(q, d)``: somebody
looked at the item, and it is relevant. Training weighs each click by ``1 / p_k``, the inverse of its
position's propensity, so that it says the same of relevance wherever it happened. Evaluation and its
baselines do not weigh clicks.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Floats, Rows
from twotower.caller import passing
from twotower.data.columns import NAMED, Roles, plain_name, plain_names
from twotower.data.dataset import Dataset, Part
from twotower.data.refusal import refuse_first
from twotower.errors import ArgumentError

MAX_WEIGHT = 10.0
"""What a click weighs at most, where one at the first position weighs 1; of 5, 10, 20 and 40 the best."""
SMOOTHING = 20.0
"""Clicks that the power law adds, on an imaginary item that two neighbouring positions showed equally."""


@dataclass(frozen=True, eq=False)
class Propensities:
    """How likely what stands at each position is looked at, relative to the first of them.

    Args:
        positions: ``(K,)`` int, distinct and rising.
        values: ``(K,)`` float64 in (0, 1], never rising; the first is 1.
        num_clicks: Clicks on what stood at several positions, from which they were estimated; 0 where
            the power law was assumed.
    """

    positions: npt.NDArray[np.integer]
    values: Floats
    num_clicks: int

    def weights(self, positions: npt.NDArray[np.integer], most: float = MAX_WEIGHT) -> Floats:
        """Return ``min(1 / p_k, most)`` of each click: ``(n,)`` float64, at least 1.

        Args:
            positions: ``(n,)`` int from 1. One that is not known is taken for the last known one before it,
                or for the first.
            most: What none weighs more than.

        Source: Joachims, Swaminathan and Schnabel, WSDM 2017: the weights, and that they are clipped.
        """
        place = np.searchsorted(self.positions, positions, side="right") - 1
        return np.minimum(1 / self.values[np.maximum(place, 0)], most)


def power_law(positions: npt.NDArray[np.integer]) -> Propensities:
    """Return propensities in proportion to ``1 / position``, where nothing better is known.

    Args:
        positions: ``(n,)`` int from 1, not empty.

    Source: Joachims, Swaminathan and Schnabel, WSDM 2017, the experiments on simulated clicks, with eta 1.
    """
    distinct = np.unique(positions)
    return Propensities(distinct, distinct[0] / distinct, 0)


def harvested(
    pairs: npt.NDArray[np.integer], positions: npt.NDArray[np.integer], clicked: Bools
) -> Propensities:
    """Return the propensities that make the clicks likeliest, given how often each item was clicked.

    What stood at several positions of the same query is as relevant at each, so that where its clicks fell
    tells positions apart. Of ``c_i`` clicks on pair ``i``, which position ``k`` showed ``n_ik`` times, each
    fell on ``k`` with probability ``n_ik p_k / sum_j n_ij p_j``: relevance is not in it. The logarithms of
    ``p`` maximise

        sum_ik c_ik log(n_ik p_k / sum_j n_ij p_j)

    plus, for neighbouring positions ``k < l``, ``SMOOTHING`` clicks of a pair that both showed alike often,
    which fell by the power law, ``l : k``. So the ratio of two neighbours of which little is known is
    nearly that of the power law. What rises with the position is then pooled (isotonic regression of
    the logarithms, each weighing its clicks).

    Args:
        pairs: ``(n,)`` int >= 0, a number for each query and item.
        positions: ``(n,)`` int from 1, where the item was shown.
        clicked: ``(n,)`` whether it was clicked there.

    Returns:
        The power law where no pair with a click was shown at two positions.

    Raises:
        ValueError: Nothing is given, the lengths differ, or a position is below 1.

    Source: Agarwal et al., WSDM 2019: what is harvested, and a likelihood of all pairs of positions.
        Hausman, Hall and Griliches, Econometrica 1984: counts given their sum. Differs: the paper estimates
        one relevance for each two positions, and every pair weighs the same there however often it was
        shown; neither smoothing nor pooling is theirs.

    Example:
        >>> shown = np.array([1] * 400 + [2] * 400)  # one document, 200 clicks above, 50 below
        >>> clicked = np.arange(800) % 400 < np.where(shown == 1, 200, 50)
        >>> harvested(np.zeros(800, np.int64), shown, clicked).values.round(2)
        array([1.  , 0.27])
    """
    if not len(pairs) == len(positions) == len(clicked):
        raise ArgumentError(
            "pairs, positions and clicked must be equally long, got "
            f"{len(pairs)}, {len(positions)} and {len(clicked)}."
        )
    if not len(positions) or positions.min() < 1:
        found = positions.min() if len(positions) else "none"
        raise ArgumentError(f"positions must be whole numbers from 1, got {found}.")
    distinct, place = np.unique(positions, return_inverse=True)
    num = len(distinct)
    cells, cell = np.unique(
        np.unique(pairs, return_inverse=True)[1] * num + place, return_inverse=True
    )
    shown = np.bincount(cell).astype(np.float64)
    clicks = np.bincount(cell, clicked)
    owner, at = np.divmod(cells, num)
    is_several = np.bincount(owner)[owner] > 1
    is_used = is_several & (np.bincount(owner, clicks)[owner] > 0)
    if not is_used.any():
        return power_law(positions)
    owner = np.unique(owner[is_used], return_inverse=True)[1]
    at, shown, clicks = at[is_used], shown[is_used], clicks[is_used]
    of_pair = np.bincount(owner, clicks)
    at_position = np.bincount(at, clicks, num)
    places = distinct.astype(np.float64)  # an int32 has no room for the sum of two
    below = places[1:] / (places[1:] + places[:-1])  # of the upper position, by the power law

    def cost(logs: Floats) -> tuple[float, Floats]:
        """Return the negated logarithm of the likelihood, and its gradient: a scalar, ``(K,)``."""
        looked = shown * np.exp(logs[at])
        total = np.bincount(owner, looked)
        slope = np.bincount(at, (of_pair / total)[owner] * looked, num).astype(np.float64)
        slope -= at_position
        step = np.diff(logs)
        upper = 1 / (1 + np.exp(step))
        value = of_pair @ np.log(total) - at_position @ logs
        value += SMOOTHING * np.sum(np.logaddexp(0, step) - (1 - below) * step)
        slope[1:] += SMOOTHING * (below - upper)
        slope[:-1] -= SMOOTHING * (below - upper)
        return float(value), slope

    from scipy.optimize import minimize  # takes a while, and few tables have positions

    start = -np.log(distinct.astype(np.float64))
    logs = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    from sklearn.isotonic import IsotonicRegression  # takes a second to load

    pooled = IsotonicRegression(increasing=False).fit_transform(
        distinct, logs, sample_weight=at_position + SMOOTHING
    )
    return Propensities(distinct, np.exp(pooled - pooled[0]), int(at_position.sum()))


_NAMES = plain_names(NAMED["position"])
_TOLD = 5
_LAST = np.iinfo(np.int32).max


def checked_positions(series: pl.Series, *, where: Bools | None = None) -> Rows:
    """Return positions: ``(n,)`` int32 from 1; what no int32 can hold is its greatest.

    Args:
        series: ``(n,)``.
        where: ``(n,)`` bool, the rows that must hold one; the others become 0. None checks all.

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
        ~is_whole if where is None else ~is_whole & where,
        f"the position column {series.name!r}",
        "hold a whole number from 1",
        "count positions from 1 and leave out rows without one, or pass another "
        f"{passing(position_column='NAME')}",
    )
    if where is not None:
        values = np.where(where, values, 0)
    positions: Rows = np.minimum(values, _LAST).astype(np.int32)
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

    clicked: Bools
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
