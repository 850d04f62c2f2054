"""Ways to cut test cases into groups: by coldness, popularity, activity, time, or any column."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import argument
from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import ArgumentError, ConfigError
from twotower.features.raw_values import floats_of, seconds_of, tags_of
from twotower.features.schema import Feature, Side, infer_features
from twotower.vocab import FIRST_ROW

Mask = npt.NDArray[np.bool_]
Unit = Literal["events", "number", "day", "minute"]
"""What the bounds of a group count. ``day`` and ``minute`` are moments in seconds since 1970, told apart
by how finely they are worth showing."""

_MAX_GROUPS = 12
_MAX_VALUES = 50  # of a column that is cut without being asked for
_DAY = 86_400.0


@dataclass(frozen=True, eq=False)
class CaseGroup:
    """One group of a cut, as the targets that belong to it.

    Args:
        by: What was cut by.
        side: Whether the group is one of queries, or of items.
        label: Which group it is.
        kept: ``(T,)`` bool over the targets of all cases; of a query that belongs, all.
        low: Smallest value in the group, where it was cut by a number.
        high: Largest value.
        unit: What these two are; None where it was not cut by a number.
    """

    by: str
    side: Side
    label: str
    kept: Mask
    low: float | None = None
    high: float | None = None
    unit: Unit | None = None


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is cut: the cases, their targets, and the training events that are counted.

    Args:
        dataset: Where they come from.
        cases: The cases.
        owners: ``(T,)`` int64, the case of each target.
        item_rows: ``(T,)`` int32 item rows of the targets.
        query_events: ``(Q,)`` positive training events of each case's query.
        item_events: ``(num_item_rows,)`` positive training events of each item row.
    """

    dataset: Dataset
    cases: Cases
    owners: npt.NDArray[np.int64]
    item_rows: npt.NDArray[np.int32]
    query_events: npt.NDArray[np.int64]
    item_events: npt.NDArray[np.int64]

    def rows(self, side: Side) -> npt.NDArray[np.int32]:
        """Return what the side's groups are of: the cases' queries, or the targets' items."""
        return self.cases.query_rows if side == "query" else self.item_rows

    def cut(self, by: str, side: Side, groups: Iterable["_Group"]) -> list[CaseGroup]:
        """Return the groups that hold something, as masks over targets."""
        found = []
        for group in groups:
            if group.mask.any():
                kept = group.mask[self.owners] if side == "query" else group.mask
                found.append(CaseGroup(by, side, group.label, kept, *group.ends))
        return found


@dataclass(frozen=True, eq=False)
class _Group:
    """A group as a mask over what its side is of: ``(Q,)`` cases or ``(T,)`` targets.

    ``ends`` are the smallest value, the largest, and what they are, where it was cut by a number.
    """

    label: str
    mask: Mask
    ends: tuple[float | None, float | None, Unit | None] = (None, None, None)


def case_groups_of(
    dataset: Dataset,
    cases: Cases,
    owners: npt.NDArray[np.int64],
    item_rows: npt.NDArray[np.int32],
    by: Sequence[str] | None,
) -> list[CaseGroup]:
    """Return every group of every cut; see ``slices`` for what ``by`` may name.

    Args:
        dataset: The data that the cases are of.
        cases: The cases.
        owners: ``(T,)`` the case of each target.
        item_rows: ``(T,)`` its item row.
        by: The cuts; None takes all that give more than one group.

    Raises:
        ConfigError: A name is none, or its column cannot be cut.
        ValueError: ``by`` is one string.
    """
    check_names(dataset, by)
    train = dataset.part(Part.TRAIN)
    train = train.where(train.is_positive)
    counts = np.bincount(train.query_rows, minlength=dataset.queries.ids.num_rows)
    asked = _Asked(
        dataset=dataset,
        cases=cases,
        owners=owners,
        item_rows=item_rows,
        query_events=counts[cases.query_rows],
        item_events=np.bincount(train.item_rows, minlength=dataset.items.ids.num_rows),
    )
    if by is None:
        skipped = "history_length" if _same_order(asked) else None
        every = [_built_in(asked, name) for name in _BUILT_IN if name != skipped]
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


def _cold(events: npt.NDArray[np.int64]) -> list[_Group]:
    return [_Group("cold", events == 0), _Group("warm", events > 0)]


def _item_popularity(asked: _Asked) -> list[_Group]:
    """Cut so that head, middle and tail hold a third of the training events each, ties together."""
    ranked = np.sort(asked.item_events)[::-1]
    share = np.cumsum(ranked) / max(1, ranked.sum())
    # An item belongs where the events of the items above it, and of its equals, begin.
    begins = np.searchsorted(-ranked, -asked.item_events[asked.item_rows], side="left")
    before = np.append(0.0, share)[begins]
    thirds = np.minimum((before * 3 + 1e-9).astype(np.int64), 2)
    groups = []
    for third, label in enumerate(("head", "middle", "tail")):
        mask = thirds == third
        events = asked.item_events[asked.item_rows[mask]]
        if len(events):
            low, high = float(events.min()), float(events.max())
            groups.append(_Group(label, mask, (low, high, "events")))
    return groups


def _times(times: npt.NDArray[np.float64] | None) -> list[_Group]:
    if times is None or not np.isfinite(times).any():
        return []
    return _quarters(times, _time_unit(times))


_BUILT_IN: dict[str, tuple[Side, Callable[[_Asked], list[_Group]]]] = {
    "cold_items": ("item", lambda asked: _cold(asked.item_events[asked.item_rows])),
    "item_popularity": ("item", _item_popularity),
    "cold_queries": ("query", lambda asked: _cold(asked.query_events)),
    "activity": ("query", lambda asked: _quarters(asked.query_events, "events")),
    "history_length": ("query", lambda asked: _quarters(asked.cases.histories.lengths, "events")),
    "time": ("query", lambda asked: _times(asked.cases.times)),
}


def _built_in(asked: _Asked, name: str) -> list[CaseGroup]:
    side, groups_of = _BUILT_IN[name]
    return asked.cut(name, side, groups_of(asked))


def _same_order(asked: _Asked) -> bool:
    """Whether histories are as long as the training events are many, but for a constant."""
    return bool(np.ptp(asked.cases.histories.lengths - asked.query_events) == 0)


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
        near = difflib.get_close_matches(name, [*known, *(c for _, c in columns.values())], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise ConfigError(
            f"{argument('slice_by')} must name a built-in cut or a column, got {name!r}; {hint}"
        )
    return found


def _column(asked: _Asked, feature: Feature, most: int | None = None) -> list[CaseGroup]:
    """Return the groups of a column; none where it has more than ``most`` values."""
    side, by = feature.side, f"{feature.side}.{feature.name}"
    lines = asked.rows(side).astype(np.int64) - FIRST_ROW
    places = pl.Series(lines)
    column = asked.dataset.sides[side].frame[feature.name]
    values = column.gather(pl.select(pl.when(places >= 0).then(places)).to_series())
    if feature.meaning == "number":
        return asked.cut(by, side, _quarters(floats_of(values), "number"))
    if feature.meaning == "time":
        seconds = seconds_of(values)
        return asked.cut(by, side, _quarters(seconds, _time_unit(seconds)))
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
    groups = [_Group(tag, _mask(line[(tags == tag).to_numpy()], len(lines))) for tag in shown]
    if feature.meaning != "tags":
        rest = line[~tags.is_in(shown).to_numpy()]
        groups.append(_Group("(other)", _mask(rest, len(lines))))
    groups.append(_Group("(missing)", ~_mask(line, len(lines))))
    return asked.cut(by, side, groups)


def _mask(positions: npt.NDArray[np.int64], size: int) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return mask


def _quarters(values: npt.NDArray[np.float64] | npt.NDArray[np.int64], unit: Unit) -> list[_Group]:
    """Return groups of about a quarter of the values each, equal values together.

    Args:
        values: ``(n,)``; what is NaN or infinite is missing.
        unit: What the values are.
    """
    is_known = np.isfinite(values)
    groups = []
    if is_known.any():
        known = values[is_known]
        edges = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="inverted_cdf"))
        quarter = np.searchsorted(edges, values)
        for q in range(len(edges) + 1):
            mask = (quarter == q) & is_known
            if mask.any():
                low, high = float(values[mask].min()), float(values[mask].max())
                groups.append(_Group(_range(low, high, unit), mask, (low, high, unit)))
    return [*groups, _Group("(missing)", ~is_known)]


def _time_unit(times: npt.NDArray[np.float64]) -> Unit:
    known = times[np.isfinite(times)]
    return "day" if len(known) and np.ptp(known) >= 8 * _DAY else "minute"


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
