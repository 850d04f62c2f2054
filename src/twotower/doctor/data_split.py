"""The doctor on the split: test events before training, cold items and queries, popularity."""

from collections.abc import Iterator

import numpy as np

from twotower.arrays import distinct
from twotower.data.dataset import KNOWN, Dataset, Part
from twotower.doctor.findings import Finding, Severity, graded
from twotower.vocab import FIRST_ROW

BEFORE_TRAIN = 0.01
"""Share of test events from which the figures visibly measure something else."""

OVERLAP = 0.1
COLD = (0.01, 0.1)
CHURN = (0.1, 0.5)
CONCENTRATION = (0.2, 0.5)
FEW = 5
FEW_SHARES = (0.2, 0.5)
"""Shares of items: worth knowing, and likely to cost quality; half is the majority."""


def empty_test(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether the test holds no positive event."""
    if not len(dataset.positives(Part.TEST)):
        yield Finding.of("empty-test", "error", 0.0, events=len(dataset.interactions))


def split_times(dataset: Dataset, *, is_chosen: bool) -> Iterator[Finding]:
    """Yield whether test events are earlier than training events.

    Args:
        dataset: The split data set.
        is_chosen: Whether the settings ask for a split that does not follow time. Earlier test events are
            then no accident, and only a warning.
    """
    times = dataset.interactions.times
    is_test = dataset.parts == Part.TEST
    known = np.isin(dataset.parts, KNOWN)
    if times is None or not is_test.any() or not known.any():
        return
    query_rows = dataset.interactions.query_rows
    last = np.full(dataset.queries.ids.num_rows, -np.inf)
    np.maximum.at(last, query_rows[known], times[known])
    tested = times[is_test]
    is_before = tested < last[query_rows[is_test]]
    share = float(is_before.mean())
    if share > 0:
        severity: Severity = "error" if share >= BEFORE_TRAIN and not is_chosen else "warning"
        facts = {"count": int(is_before.sum()), "total": len(tested)}
        yield Finding.of("test-before-train", severity, share, **facts)
    overlap = float((tested < times[known].max()).mean())
    if overlap >= OVERLAP:
        yield Finding.of("time-overlap", "info", overlap)


def churn(dataset: Dataset) -> Iterator[Finding]:
    """Yield how many of the test's items and queries training has not seen."""
    known, test = dataset.positives(*KNOWN), dataset.positives(Part.TEST)
    if not len(test):
        return
    is_known = np.zeros(dataset.items.ids.num_rows, np.bool_)
    is_known[dataset.positives(Part.TRAIN, Part.VALID).item_rows] = True
    items, queries = distinct(test.item_rows), distinct(test.query_rows)
    new_queries = np.setdiff1d(queries, known.query_rows)
    cold = float((~is_known[test.item_rows]).mean())
    yield from graded("cold-test-items", cold, COLD)
    for kind, new, total in (
        ("catalogue-churn", int((~is_known[items]).sum()), len(items)),
        ("query-churn", len(new_queries), len(queries)),
    ):
        yield from graded(kind, new / total, CHURN, count=new, total=total)


def popularity(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether a few items have most training events, and whether most items have too few."""
    train = dataset.positives(Part.TRAIN)
    counts = np.bincount(train.item_rows, minlength=dataset.items.ids.num_rows)
    counts = counts[FIRST_ROW:] if dataset.offered is None else counts[dataset.offered]
    if not len(train):
        return
    top = -(-int((counts > 0).sum()) // 100)
    concentration = float(np.sort(counts)[::-1][:top].sum() / counts.sum())
    few = float((counts < FEW).mean())
    facts = {"items": len(counts), "needed": FEW, "median": float(np.median(counts))}
    yield from graded("popularity-concentration", concentration, CONCENTRATION, items=top)
    yield from graded("few-events-per-item", few, FEW_SHARES, **facts)
