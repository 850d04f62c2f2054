"""The doctor on events: copies, times, order, and what clicks would weigh by their positions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Floats, Ints, Rows, distinct
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.data.positions import MAX_WEIGHT, WHY_ASSUMED, examples_of, propensities_of
from twotower.doctor.findings import Finding, Severity, graded

COPIES = 0.001
"""Share of the events from which copies are a warning; fewer change no figure visibly."""

COPIES_IN_TEST = 0.01
"""Share of the test events from which copies in training change what the figures measure."""

DAY = 86_400.0
"""Seconds of a day: times that are all multiples of it are dates."""

TIES = (0.1, 0.5)
"""Shares of events at the same moment as another: worth knowing, and mostly arbitrary order."""

ONE_MOMENT_SHARE, ONE_MOMENT_EVENTS, ONE_MOMENT_TIMES_MEAN = 0.02, 100, 20
"""A moment is suspicious if it has at least this share of all events, at least this many, and this many
times as many as the average moment. The last condition spares data whose times are days."""

NEEDED_DEVIATIONS = 3.0
"""An order that says nothing exceeds this in one of several hundred data sets."""

MIN_EVENTS, MIN_COLLISIONS = 5_000, 100
"""With fewer, even an informative order need not stand out, and there is no finding."""

MAX_EVENTS = 300_000
SHUFFLES = 20


def duplicates(dataset: Dataset, kind_column: str | None = None) -> Iterator[Finding]:
    """Yield whether there are copies of events: of the same query, item, time and kind of event.

    Where repeats are usual, a copy cannot be told from a repeat: there is no finding without times, and
    at most an info if times are dates.

    Args:
        dataset: The split data set.
        kind_column: Column of the interactions with the kinds of event, or None where there is one kind.
    """
    events = dataset.interactions
    if events.times is None and dataset.repeats:
        return
    frame = pl.DataFrame({"query": events.query_rows, "item": events.item_rows})
    if events.times is not None:
        frame = frame.with_columns(time=events.times)
    if kind_column is not None and kind_column in dataset.event_columns.columns:
        frame = frame.with_columns(kind=dataset.event_columns[kind_column].cast(pl.String))
    first = pl.col("place").first().over(frame.columns)
    firsts = frame.with_row_index("place").select(first).to_series().to_numpy()
    copies = len(firsts) - len(distinct(firsts))
    if not copies:
        return
    share = copies / len(firsts)
    is_test = dataset.parts == Part.TEST
    in_test = 0.0
    if is_test.any():
        in_test = float(np.isin(firsts[is_test], firsts[~is_test]).mean())
    severity: Severity = "warning" if share >= COPIES else "info"
    if in_test >= COPIES_IN_TEST:
        severity = "error"
    key, key_zh = "query and item", "查询和物品"
    if events.times is not None:
        key, key_zh = "query, item and time", "查询、物品和时间"
        if dataset.repeats and not (events.times % DAY).any():
            key, key_zh, severity = "query, item and day", "查询、物品和日期", "info"
    facts = {"count": copies, "in_test": in_test, "key": key, "key_zh": key_zh}
    yield Finding.of("duplicate-events", severity, share, **facts)


def tied_times(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether many events share their moment with another event of the query, copies apart."""
    events = dataset.interactions
    if events.times is None:
        return
    columns = {"query": events.query_rows, "item": events.item_rows, "time": events.times}
    is_tied = pl.len().over("query", "time") > 1
    share = pl.DataFrame(columns).unique().select(is_tied.mean()).item()
    yield from graded("tied-times", share, TIES)


def one_moment(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether one moment has far more events than the average moment, of several queries."""
    events = dataset.interactions
    if events.times is None:
        return
    moments, counts = np.unique(events.times, return_counts=True)
    place = int(counts.argmax())
    count, share = int(counts[place]), float(counts[place] / len(events))
    queries = len(distinct(events.query_rows[events.times == moments[place]]))
    is_usual = count < ONE_MOMENT_TIMES_MEAN * counts.mean() and len(moments) > 1
    if share < ONE_MOMENT_SHARE or count < ONE_MOMENT_EVENTS or is_usual or queries < 2:
        return
    moment = "?"
    if np.isfinite(moments[place]):
        moment = str(np.datetime64(int(moments[place]), "s")).replace("T", " ")
    yield Finding.of("one-moment", "warning", share, queries=queries, moment=moment)


def out_of_order(
    query_rows: npt.NDArray[np.integer], times: Floats, *, sorted_by_time: bool
) -> Iterator[Finding]:
    """Yield a finding if rows of the table precede earlier events of the same query.

    Args:
        query_rows: ``(E,)`` query of each event in the order of the table.
        times: ``(E,)`` its time.
        sorted_by_time: Whether events are sorted by time before they are used, which fixes the order.
    """
    follows = pl.col("time").cum_min(reverse=True).shift(-1)  # the earliest event after this one
    events = pl.DataFrame({"query": query_rows, "time": times})
    late = int(events.select((pl.col("time") > follows).over("query").sum()).item())
    share = late / max(1, len(events))
    if late and sorted_by_time:
        yield Finding.of("events-out-of-order: sorted here", "info", share)
    elif late:
        yield Finding.of("events-out-of-order: read in that order", "warning", share)


def position_weights(dataset: Dataset, *, is_rated: bool) -> Iterator[Finding]:
    """Yield the weights of the training clicks by position, and how many of the weights are cut.

    Args:
        dataset: The split data set.
        is_rated: Whether label 0 is a low rating.
    """
    found = propensities_of(dataset, is_rated=is_rated)
    if found is None or dataset.interactions.positions is None:
        return
    positions = dataset.interactions.positions[found.clicked]
    cut = float((found.propensities.weights(positions, most=np.inf) > MAX_WEIGHT).mean())
    if found.why_assumed is not None:
        why, why_zh = WHY_ASSUMED[found.why_assumed]
        facts = {"most": MAX_WEIGHT, "why": why, "why_zh": why_zh}
        yield Finding.of("positions-assumed", "warning", cut, **facts)
        return
    yield Finding.of(
        "position-weights",
        "info",
        cut,
        most=MAX_WEIGHT,
        clicks=found.propensities.num_clicks,
        examples=examples_of(found.propensities),
        examples_zh=examples_of(found.propensities, "第 {position} 位 {value:.2g}"),
    )


class OrderEvidence(NamedTuple):
    """How far an order is from shuffled orders, in standard deviations of the shuffled ones.

    Args:
        adjacent: For how often the same transition between two items recurs.
        position: For how much items differ in their place in a sequence.
        events: Number of events that it is measured on.
        collisions: How often a transition recurs by chance.
    """

    adjacent: float
    position: float
    events: int
    collisions: float

    @property
    def is_enough(self) -> bool:
        """Whether there are enough events to conclude something from a small figure."""
        return self.events >= MIN_EVENTS and self.collisions >= MIN_COLLISIONS


def shuffled_order(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether the order of events looks shuffled."""
    if not dataset.ordered:
        return
    positive = dataset.interactions.where(dataset.interactions.is_positive)
    evidence = order_evidence(positive)
    found = max(evidence.adjacent, evidence.position)
    if evidence.is_enough and found < NEEDED_DEVIATIONS:
        facts = {"adjacent": evidence.adjacent, "position": evidence.position}
        yield Finding.of("shuffled-order", "warning", found, **facts, needed=NEEDED_DEVIATIONS)


def order_evidence(events: Interactions, *, seed: int = 0) -> OrderEvidence:
    """Return how far the order within queries is from what shuffling within queries gives.

    Both of ``order_statistics`` are compared with those of ``SHUFFLES`` shuffled orders. Shuffling keeps
    which items a query has, so that taste and popularity are the same on both sides. Events at one
    moment have no order and are shuffled on both sides.

    Args:
        events: Sorted by query; within a query by time, or in the order to be judged if there are no
            times. If there are many, whole queries are sampled.
        seed: Seed of the sample and of the shuffles.
    """
    rng = np.random.default_rng(seed)
    events = _drawn(events, rng)
    owners = events.query_rows
    lengths = np.diff(events.offsets)[owners]
    starts = events.offsets[:-1][owners]
    places = (np.arange(len(events)) - starts + 0.5) / np.maximum(lengths, 1) - 0.5
    follows = owners[1:] == owners[:-1]

    def statistics(order: Ints) -> tuple[float, float]:
        return order_statistics(events.item_rows[order], follows, places)

    ties, order = rng.random(len(events)), np.arange(len(events))
    if events.times is not None:
        order = np.lexsort((ties, events.times, owners))
    real = statistics(order)
    shuffled = np.array(
        [statistics(np.lexsort((rng.random(len(events)), owners))) for _ in range(SHUFFLES)]
    )
    expected, deviation = shuffled.mean(axis=0), shuffled.std(axis=0, ddof=1)
    deviation[0] = max(deviation[0], np.sqrt(expected[0]), 1.0)  # rare pairs come by Poisson's law
    deviation[1] = max(deviation[1], 1e-12)
    adjacent, position = (np.array(real) - expected) / deviation
    return OrderEvidence(float(adjacent), float(position), len(events), float(expected[0]))


def order_statistics(item_rows: Rows, follows: Bools, places: Floats) -> tuple[float, float]:
    """Return how often transitions recur, and how much items differ in their place.

    The first counts the pairs of equal transitions: of ``c`` times that item ``b`` comes right after
    another item ``a``, ``c (c - 1) / 2``. The second is the sum over items of ``n m**2``, with ``n`` the
    item's events and ``m`` their mean place.

    Args:
        item_rows: ``(E,)`` the sequences end to end.
        follows: ``(E - 1,)`` whether an event belongs to the sequence of the one before it.
        places: ``(E,)`` where in its sequence each event stands, from -1/2 to 1/2.
    """
    size = int(item_rows.max(initial=0)) + 1
    pairs = item_rows[:-1].astype(np.int64) * size + item_rows[1:]
    _, counts = np.unique(pairs[follows & (item_rows[1:] != item_rows[:-1])], return_counts=True)
    sums = np.bincount(item_rows, places, size)
    events = np.bincount(item_rows, minlength=size)
    recurring = (counts * (counts - 1) / 2).sum()
    return float(recurring), float((sums**2 / np.maximum(events, 1)).sum())


def _drawn(events: Interactions, rng: np.random.Generator) -> Interactions:
    """Return the events of queries with at least two, of a sample of queries if they are many."""
    lengths = np.diff(events.offsets)
    kept = lengths >= 2
    if lengths[kept].sum() > MAX_EVENTS:
        order = rng.permutation(np.flatnonzero(kept))
        fits = np.cumsum(lengths[order]) <= MAX_EVENTS
        kept = np.zeros(len(lengths), np.bool_)
        kept[order[fits]] = True
    return events.where(kept[events.query_rows])
