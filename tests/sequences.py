"""Events and cases written as lists of item rows, one list a query."""

import numpy as np

from twotower.data.dataset import Cases, Interactions
from twotower.histories import Histories


def interactions(
    sequences: list[list[int]],
    labels: list[int] | None = None,
    weights: list[float] | None = None,
) -> Interactions:
    """Events of queries 0, 1, ...; the labels and weights are of all events in turn."""
    lengths = [len(items) for items in sequences]
    return Interactions(
        query_rows=np.repeat(np.arange(len(sequences), dtype=np.int32), lengths),
        item_rows=np.array([row for items in sequences for row in items], np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=None if labels is None else np.array(labels, np.float32),
        weights=None if weights is None else np.array(weights, np.float32),
    )


def cases_of(histories: list[list[int]]) -> Cases:
    """Cases with these histories; what each wants is item row 2."""
    sets = [np.array(items, np.int32) for items in histories]
    targets = Histories.of([np.array([2], np.int32)] * len(sets))
    return Cases(np.arange(len(sets), dtype=np.int32), Histories.of(sets), targets)
