"""Histories: ragged rows taken in any order, and windows cut from them, against nested loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.histories import Histories, last_windows, since_first, windows_before

ragged = st.lists(st.lists(st.integers(2, 99), max_size=5), max_size=6)


def timed(lists: list[list[int]]) -> Histories:
    histories = Histories.of([np.array(rows, np.int32) for rows in lists])
    times = np.arange(len(histories.item_rows), dtype=np.float64) / 2 + 9
    event_rows = np.arange(2, 2 + len(times), dtype=np.int32)
    return Histories(histories.offsets, histories.item_rows, times, event_rows)


def as_lists(histories: Histories) -> list[list[int]]:
    bounds = histories.offsets.tolist()
    return [histories.item_rows[a:b].tolist() for a, b in pairwise(bounds)]


@given(lists=ragged)
def test_lists_go_in_and_come_out(lists: list[list[int]]) -> None:
    histories = timed(lists)
    assert as_lists(histories) == lists
    assert len(histories) == len(lists)
    assert histories.lengths.tolist() == [len(rows) for rows in lists]
    assert histories.offsets.dtype == np.int64
    assert histories.item_rows.dtype == np.int32


@given(lists=ragged, data=st.data())
def test_take_is_list_indexing(lists: list[list[int]], data: st.DataObject) -> None:
    histories = timed(lists)
    positions = data.draw(st.lists(st.integers(0, len(lists) - 1)) if lists else st.just([]))
    taken = histories.take(np.array(positions, np.int64))
    assert as_lists(taken) == [lists[position] for position in positions]
    assert taken.times is not None
    bounds = histories.offsets
    expected = [9 + t * 0.5 for p in positions for t in range(bounds[p], bounds[p + 1])]
    assert taken.times.tolist() == expected
    part = data.draw(st.slices(len(lists)))
    assert as_lists(histories.take(part)) == lists[part]


@given(lists=ragged, data=st.data())
def test_where_leaves_events_out(lists: list[list[int]], data: st.DataObject) -> None:
    histories = timed(lists)
    num = len(histories.item_rows)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)), np.bool_)
    kept = histories.where(mask)
    bounds = histories.offsets.tolist()
    expected = [
        [item for item, is_kept in zip(rows, mask[a:b], strict=True) if is_kept]
        for rows, (a, b) in zip(lists, pairwise(bounds), strict=True)
    ]
    assert as_lists(kept) == expected
    assert histories.times is not None
    assert kept.times is not None
    assert kept.times.tolist() == histories.times[mask].tolist()
    assert kept.event_rows is not None
    assert kept.event_rows.tolist() == (2 + np.flatnonzero(mask)).tolist()


def test_empty_histories() -> None:
    assert as_lists(Histories.empty(3)) == [[], [], []]
    assert len(Histories.empty(0)) == len(Histories.of([])) == 0
    assert as_lists(Histories.empty(3).take(np.array([2, 0]))) == [[], []]


@given(lists=ragged, length=st.integers(1, 6))
def test_the_last_window_is_right_aligned(lists: list[list[int]], length: int) -> None:
    histories = timed(lists)
    windows = last_windows(histories, length)
    rows, times, event_rows = windows.rows, windows.times, windows.event_rows
    assert event_rows is not None
    assert rows.shape == (len(lists), length)
    assert rows.dtype == np.int32
    assert times is not None
    first = 0
    for line, items in enumerate(lists):
        padding = [0] * (length - len(items))
        assert rows[line].tolist() == padding + items[-length:]
        moments = [9 + 0.5 * (first + place) for place in range(len(items))]
        assert times[line].tolist() == padding + moments[-length:]
        lines = [2 + first + place for place in range(len(items))]
        assert event_rows[line].tolist() == padding + lines[-length:]
        first += len(items)


def test_windows_without_times_or_events() -> None:
    windows = last_windows(Histories.of([np.array([5], np.int32)]), 2)
    assert (windows.rows.tolist(), windows.times, windows.event_rows) == ([[0, 5]], None, None)
    windows = last_windows(Histories.empty(2), 3)
    assert (windows.rows.tolist(), windows.times) == ([[0, 0, 0]] * 2, None)
    no_events = Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0))
    windows = last_windows(no_events, 2)
    assert windows.times is not None
    assert (windows.rows.tolist(), windows.times.tolist()) == ([[0, 0]], [[0.0, 0.0]])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=5), st.integers(1, 4)
)  # fmt: skip
def test_a_window_holds_the_events_before_its_end_and_no_others(
    spans: list[tuple[int, int]], length: int
) -> None:
    starts = np.array([start for start, _ in spans], np.int64)
    ends = starts + np.array([size for _, size in spans], np.int64)
    positions, mask = windows_before(ends, starts, length)
    assert positions.shape == mask.shape == (len(spans), length)
    for line, (start, size) in enumerate(spans):
        expected = list(range(start, start + size))[-length:]
        assert positions[line][mask[line]].tolist() == expected
        assert mask[line].tolist() == [False] * (length - len(expected)) + [True] * len(expected)
        assert not positions[line][~mask[line]].any()


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_history_is_not_copied_into_its_neighbours(size: int) -> None:
    lists = [[9] * 3, [5] * size, [9] * 3]
    rows = last_windows(timed(lists), 7).rows
    assert set(rows[1].tolist()) <= {0, 5}


class TestSinceFirst:
    def test_seconds_since_the_first_real_event(self) -> None:
        times = np.array([[0.0, 0.0, 1.7e9, 1.7e9 + 1.0], [1e9, 1e9 + 60, 1e9 + 61, 1e9 + 86_400]])
        rows = np.array([[0, 0, 5, 6], [4, 5, 6, 7]], np.int32)
        found = since_first(times, rows)
        assert found.dtype == np.float64
        assert found.tolist() == [[0.0, 0.0, 0.0, 1.0], [0.0, 60.0, 61.0, 86_400.0]]

    def test_nothing_but_padding(self) -> None:
        assert not since_first(np.zeros((2, 3)), np.zeros((2, 3), np.int32)).any()


def test_sets_of_pairs_hold_each_row_once() -> None:
    rows = np.array([5, 3, 5, 4, 3], np.int32)
    sets = Histories.of_pairs(np.array([2, 0, 2, 2, 0]), rows, 4)
    assert sets.offsets.tolist() == [0, 1, 1, 3, 3]
    assert sets.item_rows.tolist() == [3, 4, 5]
    assert sets.offsets.dtype == np.dtype(np.int64)
    assert sets.item_rows.dtype == np.dtype(np.int32)
