"""The doctor on the order of events: whether it says more than a shuffled order would."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from twotower.arrays import Bools, Floats, Ints, Rows
from twotower.data.dataset import Dataset, Interactions
from twotower.doctor.findings import Finding

NEEDED_DEVIATIONS = 3.0
"""An order that says nothing exceeds this in one of several hundred data sets."""

MIN_EVENTS, MIN_COLLISIONS = 5_000, 100
"""With fewer, even an informative order need not stand out, and there is no finding."""

MAX_EVENTS = 300_000
SHUFFLES = 20


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
