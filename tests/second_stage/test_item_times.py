"""When the events of each item were, beside nested loops over the events."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from twotower.arrays import Floats, Rows
from twotower.second_stage.item_times import SHARES, ItemTimes

BEGIN = 1_577_836_800
"""In seconds since 1970."""

Events = list[tuple[int, int]]
events_of = st.lists(
    st.tuples(st.integers(2, 6), st.integers(0, 300_000_000) | st.integers(0, 5)), min_size=1
)
"""Of an item, and when, in seconds since ``BEGIN``: some at equal times."""


def fitted(events: Events) -> ItemTimes:
    rows, times = np.array(events).T
    found = ItemTimes.fit(rows.astype(np.int32), times.astype(np.float64) + BEGIN)
    assert found is not None
    return found


def moments_around(events: Events) -> Floats:
    """Return the moments of the events, those a second before and after, and others far away."""
    times = np.unique([time for _, time in events]) + BEGIN
    far = [BEGIN - 1e9, BEGIN + 2e9, np.inf, -np.inf, np.nan]
    return np.concatenate([times, times - 1, times + 1, far]).astype(np.float64)


@given(events_of)
def test_counts_and_ages_are_those_of_nested_loops(events: Events) -> None:
    found, moments = fitted(events), moments_around(events)
    rows = np.broadcast_to(np.arange(9, dtype=np.int32), (len(moments), 9))
    counts = found.as_of(rows, moments)
    assert counts.total.dtype == counts.recent.dtype == counts.ages.dtype == np.float32
    times = [time + BEGIN for _, time in events]
    span = max(times) - min(times) or 1
    last = min(times) + span
    for line, moment in enumerate(moments):
        # After the last event, or without a moment, all events are known; it counts as just after it.
        is_late = not moment <= last
        now = last if is_late else max(moment, min(times))
        for row in range(9):
            before = [
                time + BEGIN
                for item, time in events
                if item == row and (is_late or time + BEGIN < moment)
            ]
            assert counts.total[line, row] == len(before)
            if before:
                age = (now - min(before)) / span
                assert counts.ages[line, row] == pytest.approx(age, abs=1e-6)
            else:
                assert np.isnan(counts.ages[line, row])
            for place, share in enumerate(SHARES):
                # Whatever lies at the edge of a window may be counted or not.
                since = now - share * span
                most = sum(time >= since - 1 for time in before)
                least = sum(time > since + 1 for time in before)
                assert least <= counts.recent[line, row, place] <= most
    alone = found.events_before(rows, moments)
    assert alone.dtype == np.float32
    np.testing.assert_array_equal(alone, counts.total)
    for line in range(len(moments)):  # what another line asks changes nothing
        one = slice(line, line + 1)
        for mine, every in zip(found.as_of(rows[one], moments[one]), counts, strict=True):
            np.testing.assert_array_equal(mine, every[one])
        np.testing.assert_array_equal(
            found.events_before(rows[one], moments[one]), counts.total[one]
        )


def test_numbers_by_hand() -> None:
    found = fitted([(2, 0), (2, 200), (2, 256), (3, 248), (3, 253)])
    rows = np.array([[2, 3, 4]], np.int32)
    counts = found.as_of(rows, np.array([BEGIN + 251.0]))
    assert counts.total.tolist() == [[2, 1, 0]]
    # The last 1, 4, 16 and 64 seconds.
    assert counts.recent[0].tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(counts.ages, [[251 / 256, 3 / 256, np.nan]], atol=1e-7)
    counts = found.as_of(rows, np.array([BEGIN + 1e6]))
    assert counts.total.tolist() == [[3, 2, 0]]
    assert counts.recent[0].tolist() == [[1, 1, 1, 2], [0, 1, 2, 2], [0, 0, 0, 0]]
    np.testing.assert_allclose(counts.ages, [[1, 8 / 256, np.nan]], atol=1e-7)


@given(st.lists(st.floats(0, 2e9), min_size=1, max_size=20))
def test_no_event_counts_at_its_own_moment(times: list[float]) -> None:
    """Nor where the ticks are rounded."""
    moments = np.array(times)
    found = ItemTimes.fit(np.arange(2, 2 + len(times), dtype=np.int32), moments)
    assert found is not None
    rows = np.arange(2, 2 + len(times), dtype=np.int32)[:, None]
    assert not found.events_before(rows, moments).any()
    assert found.events_before(rows, np.full(len(times), np.inf)).all()
    # A tick is a part of the span; what is two ticks before is known.
    later = moments + 2 * found.span / 2**31 + 1e-6
    np.testing.assert_array_equal(found.events_before(rows, later), np.ones((len(times), 1)))


def test_events_without_a_time_are_left_out() -> None:
    rows: Rows = np.array([2, 2, 3, 4], np.int32)
    found = ItemTimes.fit(rows, np.array([10.0, np.nan, np.inf, 20.0]))
    assert found is not None
    assert found.events_before(np.array([[2, 3, 4]], np.int32), np.array([np.nan])).tolist() == [
        [1, 0, 1]
    ]
    assert (found.first, found.span) == (10, 10)
    for times in (np.full(4, np.nan), np.full(4, -np.inf)):
        assert ItemTimes.fit(rows, times) is None
    assert ItemTimes.fit(rows[:0], np.zeros(0)) is None


def test_all_at_one_time() -> None:
    found = fitted([(2, 7), (2, 7), (3, 7)])
    rows = np.array([[2, 3, 4]] * 4, np.int32)
    moments = BEGIN + np.array([6.0, 7.0, 8.0, np.inf])
    assert found.events_before(rows, moments).tolist() == [[0] * 3, [0] * 3, [2, 1, 0], [2, 1, 0]]


def test_no_line_and_no_candidate() -> None:
    found = fitted([(2, 0), (3, 10)])
    for shape in ((0, 3), (2, 0)):
        for moment in (BEGIN + 5.0, np.inf):
            moments = np.full(shape[0], moment)
            counts = found.as_of(np.zeros(shape, np.int32), moments)
            assert counts.total.shape == counts.ages.shape == shape
            assert counts.recent.shape == (*shape, len(SHARES))
            assert found.events_before(np.zeros(shape, np.int32), moments).shape == shape
