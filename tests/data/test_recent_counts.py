"""Popularity at moments of the past, beside numbers by hand and a count of every event."""

import math
from dataclasses import replace

import numpy as np
import pytest

from twotower.baselines.popularity import RecentPopularity
from twotower.data.dataset import Cases, Interactions
from twotower.data.recent_counts import RecentCounts
from twotower.histories import Histories


def events_of(items: list[int], times: list[float] | None) -> Interactions:
    """Return the events of one query."""
    return Interactions(
        query_rows=np.full(len(items), 2, np.int32),
        item_rows=np.array(items, np.int32),
        offsets=np.array([0, 0, 0, len(items)]),
        times=None if times is None else np.array(times),
    )


def test_numbers_by_hand() -> None:
    """Item 2 at 0 and 10, item 3 at 20 and 30, a half-life of 10, two moments: 20, and the end.

    Before 20 item 2 has 1/4 + 1/2 events. At the end, which is 30, it has 1/8 + 1/4, and item 3 1/2 + 1.
    """
    found = RecentCounts.of(events_of([2, 2, 3, 3], [0, 10, 20, 30]), 4, 10.0, 2)
    assert found.moments.tolist() == [-math.inf, 20, math.inf]
    expected = np.array([[0, 0, 0, 0], [0, 0, 0.75, 0], [0, 0, 0.375, 1.5]])
    np.testing.assert_allclose(found.logs, np.log1p(expected), rtol=1e-6)


def test_an_event_knows_nothing_of_its_own_moment() -> None:
    found = RecentCounts.of(events_of([2, 2, 3, 3], [0, 10, 20, 30]), 4, 10.0, 2)
    assert found.lines_at(np.array([-5.0, 0, 19.9, 20, 30, 99])).tolist() == [0, 0, 0, 1, 1, 1]
    assert found.lines_at(np.array([np.nan, np.inf])).tolist() == [0, 0]


@pytest.mark.parametrize("half_life", [3.0, 1e9])
def test_is_what_counting_every_event_gives(half_life: float) -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 50, 200)).astype(float)  # many at one moment
    items = rng.integers(2, 9, 200)
    found = RecentCounts.of(events_of(items.tolist(), times.tolist()), 9, half_life)
    assert len(found.moments) == 17
    for moment, logs in zip(found.moments[1:], found.logs[1:], strict=True):
        counts = [0.0] * 9
        for item, time in zip(items, times, strict=True):
            if time < moment:
                counts[item] += 0.5 ** ((min(moment, times[-1]) - time) / half_life)
        np.testing.assert_allclose(logs, [math.log(1 + count) for count in counts], rtol=1e-4)


def test_weights_count_in_proportion_to_their_mean() -> None:
    events = events_of([2, 3, 3], [0.0, 10.0, 10.0])
    plain = RecentCounts.of(events, 4, 10.0, 1).logs
    alike = RecentCounts.of(replace(events, weights=np.full(3, 0.01, np.float32)), 4, 10.0, 1).logs
    np.testing.assert_allclose(alike, plain, rtol=1e-6)
    found = RecentCounts.of(
        replace(events, weights=np.array([4, 1, 1], np.float32)), 4, 10.0, 1
    ).logs
    np.testing.assert_allclose(found[-1, 2:], np.log1p([2 * 0.5, 0.5 + 0.5]), rtol=1e-6)


@pytest.mark.parametrize("has_weights", [True, False])
def test_the_last_line_ranks_as_recent_popularity_does(*, has_weights: bool) -> None:
    rng = np.random.default_rng(1)
    events = events_of(rng.integers(2, 30, 300).tolist(), np.sort(rng.random(300) * 9).tolist())
    if has_weights:
        events = replace(events, weights=rng.random(300, np.float32) * 9)
    case = Cases(np.array([2], np.int32), Histories.empty(1), Histories.empty(1))
    scores = RecentPopularity.fit(events, 30, half_life=2.0).score(case)[0, 2:].numpy()
    ours = RecentCounts.of(events, 30, 2.0).logs[-1, 2:]
    assert np.argsort(-ours, kind="stable").tolist() == np.argsort(-scores, kind="stable").tolist()


def test_events_without_a_time_or_with_label_0_do_not_count() -> None:
    events = events_of([2, 3, 3], [1.0, 2.0, np.nan])
    assert RecentCounts.of(events, 4, 1e9).logs[-1].tolist() == pytest.approx(
        [0, 0, math.log(2), math.log(2)]
    )


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="events must have times, got none"):
        RecentCounts.of(events_of([2], None), 3, 1.0)
    with pytest.raises(ValueError, match=r"half_life must be .* got 0"):
        RecentCounts.of(events_of([2], [0.0]), 3, 0.0)
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        RecentCounts.of(events_of([2], [0.0]), 3, 1.0, 0)
