"""The doctor on events: copies, times, and what clicks would weigh by their positions."""

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.data.dataset import Dataset, Interactions, Part
from twotower.data.positions import WHY_ASSUMED, examples_of, propensities_of
from twotower.data.propensities import MAX_WEIGHT
from twotower.doctor.findings import Finding, Severity, graded

COPIES = 0.001
"""From this share of events on copies are a warning: fewer change no figure that one could see."""

COPIES_IN_TEST = 0.01
"""From this share of test events on that training has a copy of, the figures say something else."""

DAY = 86_400.0
"""Seconds of a day: times that are all multiples of it are dates."""

TIES = (0.1, 0.5)
"""Shares of events with the moment of another: worth knowing, and the order is mostly arbitrary."""

ONE_MOMENT_SHARE, ONE_MOMENT_EVENTS, ONE_MOMENT_TIMES_MEAN = 0.02, 100, 20
"""A moment is suspicious that has this share of all events, this many, and is this many times as
frequent as the average moment, which spares data whose times are days."""


def duplicates(dataset: Dataset, kind_column: str | None = None) -> list[Finding]:
    """Return whether events are there twice: the same query, item and time, and kind of event.

    Where repeats are usual a copy cannot be told from one without times, so nothing is said; nor can
    it if times are dates, so copies are at most worth knowing.

    Args:
        dataset: Split.
        kind_column: Column of the interactions with the kinds of event, or None where there is one kind.
    """
    events = dataset.interactions
    if events.times is None and dataset.repeats:
        return []
    kinds = None
    if kind_column is not None and kind_column in dataset.event_columns.columns:
        texts = dataset.event_columns[kind_column].cast(pl.String)
        kinds = texts.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    groups = _same_events(events, kinds)
    sizes = np.bincount(groups)
    copies = len(groups) - len(sizes)
    if not copies:
        return []
    share = copies / len(groups)
    is_test = dataset.parts == Part.TEST
    known = np.bincount(groups[dataset.parts != Part.TEST], minlength=len(sizes)) > 0
    in_test = float(known[groups[is_test]].mean()) if is_test.any() else 0.0
    severity: Severity = "warning" if share >= COPIES else "info"
    if in_test >= COPIES_IN_TEST:
        severity = "error"
    key, key_zh = "query and item", "查询和物品"
    if events.times is not None:
        key, key_zh = "query, item and time", "查询、物品和时间"
        if dataset.repeats and not (events.times % DAY).any():
            key, key_zh, severity = "query, item and day", "查询、物品和日期", "info"
    facts = {"count": copies, "in_test": in_test, "key": key, "key_zh": key_zh}
    return [Finding.of("duplicate-events", severity, share, **facts)]


def tied_times(dataset: Dataset) -> list[Finding]:
    """Return whether many events of a query happened at one moment; copies are not counted."""
    events = dataset.interactions
    if events.times is None:
        return []
    _, first = np.unique(_same_events(events), return_index=True)
    query_rows, times = events.query_rows[first], events.times[first]
    order = np.lexsort((times, query_rows))
    query_rows, times = query_rows[order], times[order]
    same = (query_rows[1:] == query_rows[:-1]) & (times[1:] == times[:-1])
    tied = np.append(same, False) | np.append(False, same)
    return graded("tied-times", float(tied.mean()), TIES)


def one_moment(dataset: Dataset) -> list[Finding]:
    """Return whether one moment has far more events, of several queries, than moments have."""
    events = dataset.interactions
    if events.times is None:
        return []
    moments, counts = np.unique(events.times, return_counts=True)
    place = int(counts.argmax())
    count, share = int(counts[place]), float(counts[place] / len(events))
    queries = len(np.unique(events.query_rows[events.times == moments[place]]))
    is_usual = count < ONE_MOMENT_TIMES_MEAN * counts.mean() and len(moments) > 1
    if share < ONE_MOMENT_SHARE or count < ONE_MOMENT_EVENTS or is_usual or queries < 2:
        return []
    moment = "?"
    if np.isfinite(moments[place]):
        moment = str(np.datetime64(int(moments[place]), "s")).replace("T", " ")
    return [Finding.of("one-moment", "warning", share, queries=queries, moment=moment)]


def out_of_order(
    query_rows: npt.NDArray[np.integer], times: npt.NDArray[np.float64], *, sorted_by_time: bool
) -> list[Finding]:
    """Return whether events stand in their table before earlier ones of the same query.

    Args:
        query_rows: ``(E,)`` query of each event in the order of the table.
        times: ``(E,)`` its time.
        sorted_by_time: Whether events are sorted by time before they are used, which mends it.
    """
    order = np.argsort(query_rows, kind="stable")
    owners, moments = query_rows[order], times[order]
    # The earliest event that still follows, seen from the end of the query's events.
    late = np.zeros(len(owners), np.bool_)
    if len(owners):
        rank = np.searchsorted(np.unique(moments), moments).astype(np.int64)
        width = int(rank.max()) + 1
        # Queries are laid end to end, so that one running minimum serves them all.
        keys = owners.astype(np.int64) * width + rank
        following = np.minimum.accumulate(keys[::-1])[::-1]
        late[:-1] = keys[:-1] > following[1:]
    if not late.any():
        return []
    share = float(late.mean())
    if sorted_by_time:
        return [Finding.of("events-out-of-order: sorted here", "info", share)]
    return [Finding.of("events-out-of-order: read in that order", "warning", share)]


def position_weights(dataset: Dataset, *, is_rated: bool) -> list[Finding]:
    """Return what the training clicks weigh by their positions, and how many of them are cut.

    Args:
        dataset: Split.
        is_rated: Whether label 0 is a low rating.
    """
    found = propensities_of(dataset, is_rated=is_rated)
    if found is None or dataset.interactions.positions is None:
        return []
    positions = dataset.interactions.positions[found.clicked]
    cut = float((found.propensities.weights(positions, most=np.inf) > MAX_WEIGHT).mean())
    if found.why_assumed is not None:
        why, why_zh = WHY_ASSUMED[found.why_assumed]
        facts = {"most": MAX_WEIGHT, "why": why, "why_zh": why_zh}
        return [Finding.of("positions-assumed", "warning", cut, **facts)]
    return [
        Finding.of(
            "position-weights",
            "info",
            cut,
            most=MAX_WEIGHT,
            clicks=found.propensities.num_clicks,
            examples=examples_of(found.propensities),
            examples_zh=examples_of(found.propensities, "第 {position} 位 {value:.2g}"),
        )
    ]


def _same_events(
    events: Interactions, kinds: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Return a number for each event that equals only that of its copies: ``(E,)``.

    Args:
        events: All events.
        kinds: ``(E,)`` a number for each kind of event, or None where there is one kind.
    """
    pairs = events.query_rows.astype(np.int64) << 32 | events.item_rows
    if kinds is not None:
        pairs = np.unique(np.stack([pairs, kinds], axis=1), axis=0, return_inverse=True)[1].ravel()
    keys = (pairs,) if events.times is None else (events.times, pairs)
    order = np.lexsort(keys)
    differs = np.ones(len(order), np.bool_)
    differs[1:] = pairs[order][1:] != pairs[order][:-1]
    if events.times is not None:
        differs[1:] |= events.times[order][1:] != events.times[order][:-1]
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(differs) - 1
    return groups
