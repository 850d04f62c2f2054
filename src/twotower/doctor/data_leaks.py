"""The doctor on columns that know too much: the test's targets, how often items are in it, or the label."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from twotower.arrays import Bools, Floats, Ints, Rows, distinct
from twotower.data.dataset import KNOWN, Dataset, Interactions, Part
from twotower.doctor.data_columns import SIDES_ZH, by_row, codes_of, described, text_of
from twotower.doctor.findings import Finding, Severity
from twotower.evaluation.metrics import auc
from twotower.features.raw_values import floats_of, seconds_of
from twotower.vocab import FIRST_ROW

TARGETS_KNOWN = (0.05, 0.15)
"""Agreement among targets in excess of that in training: a warning; and an error, as the figures then
measure the column. Drifting tastes stay below the first in every public data set that we know."""

COUNTS_KNOWN = (0.5, 0.8)
"""Partial rank correlations; a release date that correlates with rising items stays below the first."""

LABEL_KNOWN = 0.98
"""AUC of a column alone from which it is hardly ever wrong, as nothing known before an event is."""

MIN_TARGETS = 100
NEEDED_DEVIATIONS = 3.0
MAX_EVENTS = 300_000


class _Label(NamedTuple):
    """A label of the targets: the item itself, or its value in a column.

    Args:
        name: The name of the column.
        codes: ``(num_item_rows,)`` group of each item row, -1 where it has none.
        texts: ``(num_items,)`` the values as text, or None where they are neither text nor whole numbers.
    """

    name: str
    codes: Ints
    texts: pl.Series | None


class _Parts(NamedTuple):
    """The events that a column's knowledge is measured on.

    Args:
        tested: Positive events of the test.
        known: Positive events of training and validation.
        latest: The last of these of each tested query: a column that tells it was made from the past.
    """

    tested: Interactions
    known: Interactions
    latest: Interactions


def leaking_query_columns(dataset: Dataset) -> Iterator[Finding]:
    """Yield which query columns know the test targets better than the past explains.

    Among queries that share a value, the share of equal pairs of test targets is compared with two
    others: how often their training events equal the target, which measures taste, and how often their
    last events before the test are equal, which is high for a column made from the history. From each
    the same share among all queries is subtracted, so that a drift common to all does not count. Only
    pairs of different queries count. Targets are compared by their id, if the item was in training, and by
    each item column.
    """
    known, test = dataset.positives(*KNOWN), dataset.positives(Part.TEST)
    if not len(test) or not len(known):
        return
    last = np.zeros(len(known), np.bool_)
    last[known.offsets[1:][np.diff(known.offsets) > 0] - 1] = True
    last &= np.isin(known.query_rows, test.query_rows)
    parts = _Parts(_drawn(test), _drawn(known), _drawn(known.where(last)))
    labels = _labels(dataset, distinct(known.item_rows))
    for name in described(dataset.queries):
        values = dataset.queries.frame[name]
        codes = codes_of(values)
        if codes is None or codes.max(initial=-1) < 1:
            continue
        texts = text_of(values)
        found = [_known_by_groups(name, by_row(codes), label, parts) for label in labels]
        found += [_named(name, texts, label, parts) for label in labels]
        yield from sorted(filter(None, found), key=lambda f: -f.value)[:1]


def leaking_item_columns(dataset: Dataset) -> Iterator[Finding]:
    """Yield which item columns correlate with the number of test events, given that of training events.

    The figure is the partial rank correlation of the column with the test counts, given the training
    counts, over items with an event and a value.

    Source: Kendall, Biometrika 1942 (partial rank correlation), here with Spearman's coefficient.
    """
    tested, known = (
        np.bincount(events.item_rows, minlength=dataset.items.ids.num_rows)[FIRST_ROW:]
        for events in (dataset.positives(Part.TEST), dataset.positives(*KNOWN))
    )
    for name in described(dataset.items):
        values = dataset.items.frame[name]
        if values.dtype.is_temporal():
            numbers = seconds_of(values)
        elif values.dtype.is_numeric() or values.dtype == pl.Boolean:
            numbers = floats_of(values)
        else:
            continue
        kept = np.isfinite(numbers) & (known + tested > 0)
        if kept.sum() < MIN_TARGETS or np.ptp(numbers[kept]) == 0:
            continue
        found = _partial(numbers[kept], tested[kept], known[kept])
        if abs(found) >= COUNTS_KNOWN[0]:
            severity: Severity = "error" if abs(found) >= COUNTS_KNOWN[1] else "warning"
            yield Finding.of("leaking-item-feature", severity, found, column=name)


def label_columns(dataset: Dataset, roles: Collection[str] | None = None) -> Iterator[Finding]:
    """Yield which columns alone tell positive from negative training events.

    The values of a column become groups, and each event is scored by the share of positives that its
    group has in the other half of the events; the figure is the AUC of that score. A column of a side is
    reported only if it tells more than the side's ids, each of which may well have one label only.
    Columns of the interactions are never fed, so that they are only a warning.

    Args:
        dataset: The split data set.
        roles: Columns of the interactions that have a role, such as the label; None skips all columns of
            the interactions.
    """
    events = dataset.interactions
    in_train = np.flatnonzero(dataset.parts == Part.TRAIN)
    if events.labels is None or len(np.unique(events.labels[in_train])) < 2:
        return
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(in_train)[:MAX_EVENTS])
    labels, is_first = events.labels[drawn] > 0, rng.random(len(drawn)) < 0.5
    for side, table, rows in (
        ("query", dataset.queries, events.query_rows),
        ("item", dataset.items, events.item_rows),
    ):
        own = _auc_of(rows[drawn].astype(np.int64), labels, is_first)
        for name in described(table):
            codes = codes_of(table.frame[name])
            if codes is None:
                continue
            found = _auc_of(by_row(codes)[rows[drawn]], labels, is_first)
            if found >= LABEL_KNOWN and found > own:
                yield _finding(side, name, found)
    for name in dataset.event_columns.columns:
        if roles is None or name in roles:
            continue
        codes = codes_of(dataset.event_columns[name][drawn])
        found = 0.0 if codes is None else _auc_of(codes, labels, is_first)
        if found >= LABEL_KNOWN:
            yield _finding("event", name, found)


def _labels(dataset: Dataset, trained: Rows) -> list[_Label]:
    """Return the labels of the targets: their id, and each column of the item table."""
    table = dataset.items
    ids = np.full(table.ids.num_rows, -1, np.int64)
    ids[trained] = trained  # what is new in the test is new for everybody, which is no leak
    labels = [_Label(table.id_column, ids, text_of(table.ids.ids))]
    for name in described(table):
        codes = codes_of(table.frame[name])
        if codes is not None and codes.max(initial=-1) >= 1:
            labels.append(_Label(name, by_row(codes), text_of(table.frame[name])))
    return labels


def _known_by_groups(column: str, groups: Ints, label: _Label, parts: _Parts) -> Finding | None:
    """Return whether queries with the same value share a target too often.

    The gain is how much more the test targets of a group agree than was to be expected, for each test
    event; NaN where it cannot be compared.
    """

    def beyond_everybody(asked: Interactions, reference: Interactions) -> Floats:
        shares = _share_of_others(asked, reference, groups, label.codes)
        return shares - _share_of_others(asked, reference, np.zeros_like(groups), label.codes)

    taste = beyond_everybody(parts.tested, parts.known)
    made_from_history = beyond_everybody(parts.latest, parts.latest)
    before = [np.nanmean(each) for each in (taste, made_from_history) if np.isfinite(each).any()]
    gains = beyond_everybody(parts.tested, parts.tested) - max(before, default=0.0)
    kept = np.isfinite(gains)
    owners = parts.tested.query_rows[kept]
    # Each query stands on both sides of its pairs, and pairs of one group share their queries.
    error = max(
        2 * _standard_error(gains[kept], owners), _standard_error(gains[kept], groups[owners])
    )
    severity = _severity(gains[kept], error)
    if severity is None:
        return None
    gain = float(gains[kept].mean())
    here = float(np.nanmean(_share_of_others(parts.tested, parts.tested, groups, label.codes)))
    facts = {"column": column, "label": label.name, "here": here, "expected": here - gain}
    return Finding.of("leaking-query-feature", severity, gain, **facts)


def _named(column: str, texts: pl.Series | None, label: _Label, parts: _Parts) -> Finding | None:
    """Return whether the value of a query is the name of its target."""
    if texts is None or label.texts is None:
        return None
    (here, owners), *before = (_is_named(texts, label.texts, events) for events in parts)
    expected = max((float(shares.mean()) for shares, _ in before if len(shares)), default=0.0)
    severity = _severity(here - expected, _standard_error(here, owners))
    if severity is None:
        return None
    share = float(here.mean())
    facts = {"column": column, "label": label.name, "here": share, "expected": expected}
    return Finding.of("feature-names-target", severity, share - expected, **facts)


def _drawn(events: Interactions) -> Interactions:
    """Return at most ``MAX_EVENTS`` of the events, drawn at random."""
    if len(events) <= MAX_EVENTS:
        return events
    is_drawn = np.zeros(len(events), np.bool_)
    is_drawn[np.random.default_rng(0).permutation(len(events))[:MAX_EVENTS]] = True
    return events.where(is_drawn)


def _severity(gains: Floats, standard_error: float) -> Severity | None:
    """Return the severity of a mean gain; None where it is small, or may be chance."""
    if len(gains) < MIN_TARGETS:
        return None
    mean = gains.mean()
    if mean < TARGETS_KNOWN[0] or mean < NEEDED_DEVIATIONS * standard_error:
        return None
    return "error" if mean >= TARGETS_KNOWN[1] else "warning"


def _standard_error(values: Floats, clusters: Ints | Rows) -> float:
    """Return the standard error of a mean of values that are dependent within a cluster."""
    if not len(values):
        return 0.0
    sums = np.bincount(clusters, values - values.mean())
    return float(np.sqrt((sums**2).sum()) / len(values))


def _is_named(
    query_texts: pl.Series, item_texts: pl.Series, events: Interactions
) -> tuple[Floats, Rows]:
    """Return which events are of an item that is named like the query's value, where both have one.

    Returns:
        ``(n,)`` 0 or 1, and the ``(n,)`` query rows.
    """
    ours = query_texts.gather(events.query_rows - FIRST_ROW)
    theirs = item_texts.gather(events.item_rows - FIRST_ROW)
    is_same = (ours == theirs).cast(pl.Float64)
    kept = is_same.is_not_null().to_numpy()
    return is_same.drop_nulls().to_numpy(), events.query_rows[kept]


def _share_of_others(
    asked: Interactions, reference: Interactions, groups: Ints, codes: Ints
) -> Floats:
    """Return, for each event, the share of the reference events in its group that have its label.

    Events of the same query are left out of the reference.

    Args:
        asked: ``T`` events.
        reference: The events to be compared with.
        groups: ``(num_query_rows,)`` group of each query, -1 for none.
        codes: ``(num_item_rows,)`` label of each item, -1 for none.

    Returns:
        ``(T,)``; NaN where the event has no group or label, or its group has no other events.
    """
    width = int(codes.max(initial=0)) + 1
    group, label = groups[reference.query_rows], codes[reference.item_rows]
    kept = (group >= 0) & (label >= 0)
    group, label, owner = group[kept], label[kept], reference.query_rows[kept].astype(np.int64)
    asking = asked.query_rows.astype(np.int64)
    own_group, own_label = groups[asking], codes[asked.item_rows]
    same = _count(group * width + label, own_group * width + own_label)
    same -= _count(owner * width + label, asking * width + own_label)
    every = _count(group, own_group) - _count(owner, asking)
    every[(own_group < 0) | (own_label < 0)] = 0
    return np.where(every > 0, same / np.maximum(every, 1), np.nan)


def _count(keys: Ints, asked: Ints) -> Ints:
    """Return how often each of ``asked`` is among ``keys``."""
    keys = np.sort(keys)
    return np.searchsorted(keys, asked, "right") - np.searchsorted(keys, asked, "left")


def _partial(x: Floats, y: Ints, given: Ints) -> float:
    """Return the partial rank correlation of ``x`` and ``y``; 0 where ``given`` explains one."""
    ranks = np.array([pl.Series(column).rank() for column in (x, y, given)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return 0.0
    xy, xg, yg = np.corrcoef(ranks)[[0, 0, 1], [1, 2, 2]]
    rest = (1 - xg**2) * (1 - yg**2)
    return float((xy - xg * yg) / np.sqrt(rest)) if rest > 1e-9 else 0.0


def _finding(side: str, column: str, value: float) -> Finding:
    severity: Severity = "warning" if side == "event" else "error"
    case = "not fed" if side == "event" else "read by a tower"
    facts = {"side": side, "side_zh": SIDES_ZH[side], "column": column}
    return Finding.of(f"column-knows-label: {case}", severity, value, **facts)


def _auc_of(groups: Ints, labels: Bools, is_first: Bools) -> float:
    """Return the AUC of a group's share of positives in the other half; a group of -1 is one, too."""
    if min(labels.sum(), (~labels).sum()) < 1:
        return 0.0
    scores = np.empty(len(groups))
    size = int(groups.max()) + 2
    for half in (is_first, ~is_first):
        other = groups[~half] + 1
        events = np.bincount(other, minlength=size)
        positives = np.bincount(other, labels[~half], size)
        overall = labels[~half].mean() if len(other) else 0.5
        scores[half] = ((positives + overall) / (events + 1))[groups[half] + 1]
    return auc(scores, labels)
