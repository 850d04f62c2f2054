"""Ways to cut test cases into groups: by coldness, popularity, activity, time, or any column."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from twotower.arrays import Bools, Floats, Ints
from twotower.caller import argument
from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import ArgumentError, ConfigError, did_you_mean
from twotower.features.raw_values import floats_of, seconds_of, tags_of
from twotower.features.schema import Feature, Side, infer_features
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW

Unit = Literal["events", "number", "day", "minute"]
"""What the bounds of a group count. ``day`` and ``minute`` are moments in seconds since 1970, told apart
by how finely they are worth showing."""

_MAX_GROUPS = 12
_MAX_VALUES = 50  # of a column that is cut without being asked for
_DAY = 86_400.0


class CaseGroup(NamedTuple):
    """One group of a cut, as the targets that belong to it.

    Args:
        label: Which group it is.
        kept: ``(T,)`` bool over the targets of all cases; all targets of a query that belongs.
        low: Smallest value in the group, where it was cut by a number.
        high: Largest value.
        unit: The unit of these two; None where it was not cut by a number.
        by: What the cases are grouped by.
        side: Whether the group is one of queries, or of items.
    """

    label: str
    kept: Bools
    low: float | None = None
    high: float | None = None
    unit: Unit | None = None
    by: str = "all"
    side: Side = "query"


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is cut: the cases, their targets, and the training events that are counted.

    Args:
        dataset: Where they come from.
        cases: The cases.
        targets: The targets of each case, each once.
        query_events: ``(Q,)`` positive training events of each case's query.
        item_events: ``(num_item_rows,)`` positive training events of each item row.
    """

    dataset: Dataset
    cases: Cases
    targets: Histories
    query_events: Ints
    item_events: Ints

    def cut(self, by: str, side: Side, groups: Iterable[CaseGroup]) -> list[CaseGroup]:
        """Return the groups that hold something; those of queries are given as ``(Q,)`` of the cases."""
        owners = self.targets.owners if side == "query" else slice(None)
        filled = (group for group in groups if group.kept.any())
        return [group._replace(kept=group.kept[owners], by=by, side=side) for group in filled]


def case_groups_of(
    dataset: Dataset, cases: Cases, targets: Histories, by: Sequence[str] | None
) -> list[CaseGroup]:
    """Return every group of every cut; see ``slices`` for what ``by`` may name.

    Args:
        dataset: The data that the cases are of.
        cases: The cases.
        targets: The targets of each case, each once.
        by: The cuts; None takes all that give more than one group.

    Raises:
        ConfigError: A name is none, or its column cannot be cut.
        ValueError: ``by`` is one string.
    """
    check_names(dataset, by)
    train = dataset.positives(Part.TRAIN)
    counts = np.bincount(train.query_rows, minlength=dataset.queries.ids.num_rows)
    item_events = np.bincount(train.item_rows, minlength=dataset.items.ids.num_rows)
    asked = _Asked(dataset, cases, targets, counts[cases.query_rows], item_events)
    if by is None:
        # One cut is enough if histories are as long as the queries' training events, but for a constant.
        is_twice = np.ptp(cases.histories.lengths - asked.query_events) == 0
        names = [name for name in _BUILT_IN if not (is_twice and name == "history_length")]
        every = [_built_in(asked, name) for name in names]
        for side, table in dataset.sides.items():
            every += [
                _column(asked, feature, most=_MAX_VALUES)
                for feature in infer_features(
                    table.frame, side, table.id_column, {}, forms=table.forms
                )
                if feature.meaning in ("categorical", "tags")
            ]
        return [cut for groups in every if len(groups) > 1 for cut in groups]
    found: list[CaseGroup] = []
    for name in dict.fromkeys(by):
        if name in _BUILT_IN:
            groups = _built_in(asked, name)
            if not groups:
                raise ConfigError(
                    f"{argument('slice_by')} must name something that the test events have, got "
                    f"{name!r} of events without times."
                )
            found += groups
            continue
        for side, column in _columns(dataset, name):
            table = dataset.sides[side]
            frame = table.frame.select(table.id_column, column)
            features = infer_features(frame, side, table.id_column, {}, forms=table.forms)
            found += _column(asked, next(f for f in features if f.name == column))
    return found


def check_names(dataset: Dataset, by: Sequence[str] | None) -> None:
    """Refuse what names no cut and no column, before anything is ranked.

    Raises:
        ConfigError: A name is none; the nearest one is told.
        ValueError: ``by`` is one string.
    """
    if isinstance(by, str):
        raise ArgumentError(
            f"{argument('slice_by')} must be a list of names, got the string {by!r}; write [{by!r}]."
        )
    for name in by or ():
        if name not in _BUILT_IN:
            _columns(dataset, name)


def _cold(events: Ints) -> list[CaseGroup]:
    return [CaseGroup("cold", events == 0), CaseGroup("warm", events > 0)]


def _item_popularity(asked: _Asked) -> list[CaseGroup]:
    """Cut so that head, middle and tail hold a third of the training events each, ties together."""
    ranked = np.sort(asked.item_events)[::-1]
    share = np.cumsum(ranked) / max(1, ranked.sum())
    events = asked.item_events[asked.targets.item_rows]
    # An item belongs where the events of the items above it, and of its equals, begin.
    before = np.append(0.0, share)[np.searchsorted(-ranked, -events, side="left")]
    thirds = np.minimum((before * 3 + 1e-9).astype(np.int64), 2)
    labels = ("head", "middle", "tail")
    return [_ranged(events, thirds == n, "events", labels[n]) for n in np.unique(thirds)]


def _times(times: Floats | None) -> list[CaseGroup]:
    if times is None or not np.isfinite(times).any():
        return []
    return _moments(times)


_BUILT_IN: dict[str, tuple[Side, Callable[[_Asked], list[CaseGroup]]]] = {
    "cold_items": ("item", lambda asked: _cold(asked.item_events[asked.targets.item_rows])),
    "item_popularity": ("item", _item_popularity),
    "cold_queries": ("query", lambda asked: _cold(asked.query_events)),
    "activity": ("query", lambda asked: _quarters(asked.query_events, "events")),
    "history_length": ("query", lambda asked: _quarters(asked.cases.histories.lengths, "events")),
    "time": ("query", lambda asked: _times(asked.cases.times)),
}


def _built_in(asked: _Asked, name: str) -> list[CaseGroup]:
    side, groups_of = _BUILT_IN[name]
    return asked.cut(name, side, groups_of(asked))


def _columns(dataset: Dataset, name: str) -> list[tuple[Side, str]]:
    """Return the columns that a name means: of one side, or of both where both have it."""
    columns = {
        f"{side}.{column}": (side, column)
        for side, table in dataset.sides.items()
        for column in table.frame.columns
        if column != table.id_column
    }
    found = [place for full, place in columns.items() if name in (full, place[1])]
    if not found:
        known = [*_BUILT_IN, *columns]
        names = [*known, *(column for _, column in columns.values())]
        hint = did_you_mean(name, names, f"; there are {', '.join(known)}.")
        raise ConfigError(
            f"{argument('slice_by')} must name a built-in cut or a column, got {name!r}{hint}"
        )
    return found


def _column(asked: _Asked, feature: Feature, most: int | None = None) -> list[CaseGroup]:
    """Return the groups of a column; none where it has more than ``most`` values."""
    side, by = feature.side, f"{feature.side}.{feature.name}"
    rows = asked.cases.query_rows if side == "query" else asked.targets.item_rows
    places = pl.Series(rows.astype(np.int64) - FIRST_ROW)
    column = asked.dataset.sides[side].frame[feature.name]
    values = column.gather(pl.select(pl.when(places >= 0).then(places)).to_series())
    if feature.meaning == "number":
        return asked.cut(by, side, _quarters(floats_of(values), "number"))
    if feature.meaning == "time":
        return asked.cut(by, side, _moments(seconds_of(values)))
    if feature.meaning == "vector":
        raise ConfigError(
            f"{argument('slice_by')} must name a column of single values or tags, got the vectors {by!r}."
        )
    line, tags = tags_of(values, feature.separator)
    counts = (
        tags.rename("tag").value_counts(name="count").sort("count", "tag", descending=[True, False])
    )
    if most is not None and not 2 <= len(counts) <= most:
        return []
    # One group more than is shown would hold a single value, which may as well be shown itself.
    top = counts["tag"].to_list()
    shown = top if len(top) <= _MAX_GROUPS + 1 else top[:_MAX_GROUPS]
    lines = np.arange(len(rows))
    groups = [CaseGroup(tag, np.isin(lines, line[(tags == tag).to_numpy()])) for tag in shown]
    if feature.meaning != "tags":
        groups.append(CaseGroup("(other)", np.isin(lines, line[~tags.is_in(shown).to_numpy()])))
    groups.append(CaseGroup("(missing)", ~np.isin(lines, line)))
    return asked.cut(by, side, groups)


def _quarters(values: Floats | Ints, unit: Unit) -> list[CaseGroup]:
    """Return groups of about a quarter of the values each, equal values together.

    Args:
        values: ``(n,)``; what is NaN or infinite is missing.
        unit: The unit of the values.
    """
    is_known = np.isfinite(values)
    groups = [CaseGroup("(missing)", ~is_known)]
    if is_known.any():
        edges = np.quantile(values[is_known], (0.25, 0.5, 0.75), method="inverted_cdf")
        quarter = np.searchsorted(np.unique(edges), values)
        masks = ((quarter == q) & is_known for q in np.unique(quarter[is_known]))
        groups[:0] = [_ranged(values, mask, unit) for mask in masks]
    return groups


def _moments(times: Floats) -> list[CaseGroup]:
    """Return quarters of moments, in days where they span at least eight."""
    known = times[np.isfinite(times)]
    is_long = len(known) and np.ptp(known) >= 8 * _DAY
    return _quarters(times, "day" if is_long else "minute")


def _ranged(values: Floats | Ints, mask: Bools, unit: Unit, label: str | None = None) -> CaseGroup:
    """Return the group of a mask with its ends, by which it is called where it has no label."""
    low, high = float(values[mask].min()), float(values[mask].max())
    return CaseGroup(label or _range(low, high, unit), mask, low, high, unit)


def _range(low: float, high: float, unit: Unit) -> str:
    first, last = _say(low, unit), _say(high, unit)
    words = first if first == last else f"{first} to {last}"
    if unit == "events":
        return f"{words} {'event' if high == 1 else 'events'}"
    return words


def _say(value: float, unit: Unit) -> str:
    if unit == "events":
        return f"{value:,.0f}"
    if unit == "number":
        return f"{value:.6g}"
    moment = np.datetime64(math.floor(value), "s")
    return str(np.datetime_as_string(moment, unit="D" if unit == "day" else "m")).replace("T", " ")
