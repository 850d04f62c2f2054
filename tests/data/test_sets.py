"""Batches of queries without an order: one part of their items is read, the other is asked for."""

from dataclasses import replace

import numpy as np
import pytest

from sequences import interactions
from twotower.data.dataset import Interactions
from twotower.data.sets import EMPTY_SHARE, SetBatch, SetBatches
from twotower.vocab import FIRST_ROW


def events_of(*lengths: int, weighted: bool = False) -> Interactions:
    """Events of queries from row 2 on, of distinct items from row 100 on; weights count from 1."""
    empty: list[list[int]] = [[]] * FIRST_ROW
    ends = 100 + np.cumsum(lengths)
    items = [list(range(end - num, end)) for num, end in zip(lengths, ends, strict=True)]
    weights = [float(n + 1) for n in range(sum(lengths))] if weighted else None
    return interactions([*empty, *items], weights=weights)


def sides(batch: SetBatch) -> dict[int, tuple[set[int], list[int]]]:
    """History and targets of each query of a batch."""
    found = {}
    for line, query in enumerate(batch.query_rows.tolist()):
        read = {row for row in batch.history_rows[line].tolist() if row}
        found[query] = read, batch.item_rows[batch.owners == line].tolist()
    return found


def test_each_item_is_read_or_asked_for() -> None:
    events = events_of(1, 5, 2, 30, 0, 8)
    batches = SetBatches(events, batch_size=2, length=50, seed=0)
    assert batches.passes == 2
    for epoch in range(3):
        given = list(batches.epoch(epoch))
        assert len(given) == len(batches) == 6
        seen: list[int] = []
        for batch in given:
            assert len(batch) == len(batch.item_rows)
            for query, (read, asked) in sides(batch).items():
                assert asked
                own = events.item_rows[events.query_rows == query].tolist()
                assert sorted([*read, *asked]) == own
                seen.append(query)
        assert sorted(seen) == sorted([2, 3, 4, 5, 7] * 2)


def test_half_of_the_items_are_asked_for() -> None:
    batches = SetBatches(events_of(*[40] * 50), batch_size=10, length=100, seed=1)
    asked = sum(len(batch) for batch in batches.epoch(0))
    assert asked / (2 * 2000) == pytest.approx(0.5 + 0.5 * EMPTY_SHARE, abs=0.03)
    first, again = (next(batches.epoch(0)) for _ in range(2))
    assert np.array_equal(first.item_rows, again.item_rows)
    other = next(SetBatches(events_of(*[40] * 50), batch_size=10, length=100, seed=2).epoch(0))
    assert not np.array_equal(first.query_rows, other.query_rows)


def test_a_long_history_is_read_in_part() -> None:
    batches = SetBatches(events_of(100), batch_size=1, length=7, seed=0)
    read = [sides(batch)[2][0] for epoch in range(20) for batch in batches.epoch(epoch)]
    assert {len(history) for history in read} <= {0, 7}
    assert len(set().union(*read)) > 80


def test_a_small_table_is_drawn_more_often() -> None:
    batches = SetBatches(events_of(3, 4, 5), batch_size=2, length=7, seed=0, least_batches=11)
    assert batches.passes == 6
    assert len(list(batches.epoch(0))) == len(batches) == 12


def test_events_of_one_item_stay_together() -> None:
    events = replace(events_of(6), item_rows=np.array([100, 101, 100, 102, 101, 100], np.int32))
    for epoch in range(20):
        for batch in SetBatches(events, batch_size=1, length=9, seed=0).epoch(epoch):
            read, asked = sides(batch)[2]
            assert not read & set(asked)


def test_what_is_no_target_is_only_read() -> None:
    events = replace(events_of(4), is_target=np.array([True, False, True, False]))
    batches = SetBatches(events, batch_size=1, length=9, seed=0)
    found = [sides(batch)[2] for epoch in range(30) for batch in batches.epoch(epoch)]
    assert all(read >= {101, 103} and set(asked) <= {100, 102} for read, asked in found)
    assert {len(asked) for _, asked in found} == {1, 2}


def test_some_queries_are_read_without_any_event() -> None:
    batches = SetBatches(events_of(*[20] * 1000), batch_size=100, length=30, seed=0)
    empty = [(batch.history_rows == 0).all(axis=1).mean() for batch in batches.epoch(0)]
    assert np.mean(empty) == pytest.approx(0.05, abs=0.01)


def test_weights_and_events_go_with_their_items() -> None:
    events = events_of(5, 6, weighted=True)
    events = replace(events, event_rows=events.item_rows + 1000)
    (batch, *_) = SetBatches(events, batch_size=2, length=9, seed=0).epoch(0)
    assert batch.weights is not None
    assert np.array_equal(batch.weights, batch.item_rows - 99)
    assert batch.history_event_rows is not None
    read = batch.history_rows > 0
    assert np.array_equal(batch.history_event_rows[read], batch.history_rows[read] + 1000)
    assert not batch.history_event_rows[~read].any()


@pytest.mark.parametrize("name", ["batch_size", "length", "least_batches"])
def test_sizes_below_one_are_refused(name: str) -> None:
    given = {"batch_size": 1, "length": 1, "least_batches": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SetBatches(events_of(3), seed=0, **given)
