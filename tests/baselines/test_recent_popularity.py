"""Recent popularity against nested loops, and a fashion that it must follow."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.baselines.popularity import (
    Popularity,
    RecentPopularity,
    choose_recent_popularity,
)
from twotower.baselines.specs import PopularWhenCold
from twotower.baselines.validation import Validation
from twotower.data import mapped
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.evaluation.ranking import rank
from twotower.histories import Histories


def interactions(
    rows: list[int],
    times: list[float] | None,
    weights: list[float] | None = None,
    labels: list[int] | None = None,
) -> Interactions:
    """Events of one query."""
    return Interactions(
        query_rows=np.zeros(len(rows), np.int32),
        item_rows=np.array(rows, np.int32),
        offsets=np.array([0, len(rows)], np.int64),
        times=None if times is None else np.array(times, np.float64),
        weights=None if weights is None else np.array(weights, np.float32),
        labels=None if labels is None else np.array(labels, np.float32),
    )


def cases_at(times: list[float] | None, count: int = 1) -> Cases:
    count = count if times is None else len(times)
    targets = Histories.of([np.array([2], np.int32)] * count)
    moments = None if times is None else np.array(times, np.float64)
    return Cases(np.arange(count, dtype=np.int32), Histories.empty(count), targets, moments)


def test_worked_by_hand() -> None:
    # Half-life 10: at 20 item 2 (at 0 and at 20) has 1/4 + 1, item 3 (at 10) 1/2; item 4 comes at 30,
    # when the others have 5/8 and 1/4. Items without an event stand below those that have one.
    train = interactions([2, 3, 2, 4], [0, 10, 20, 30])
    fitted = RecentPopularity.fit(train, 6, half_life=10.0)
    scores = fitted.score(cases_at([20.0, 30.0, 5.0, -1.0]))
    log, none, later = math.log, 2 * math.log(0.4) - 1, 2 * math.log(0.25) - 1
    expected: list[list[float]] = [
        [none, none, 0, log(0.5 / 1.25), none, none],
        [later, later, log(0.625), log(0.25), 0, later],
        [-1, -1, 0, -1, -1, -1],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_old_items_stay_in_order_however_old_they_are() -> None:
    # Two thousand half-lives before the end: the counts 0.5**2000 are 0 in float64 too.
    fitted = RecentPopularity.fit(interactions([3, 2, 4], [0, 1, 2_000]), 6, half_life=1.0)
    for now in (2_000.0, 9_000.0):
        (scores,) = fitted.score(cases_at([now])).numpy()
        assert np.isfinite(scores).all()
        assert scores[4] > scores[2] > scores[3] > scores[5]


def test_near_the_top_close_counts_stay_apart() -> None:
    train = interactions([2, 3], [0, 0], weights=[100_001, 100_000])
    (scores,) = RecentPopularity.fit(train, 4, half_life=1.0).score(cases_at([50.0])).numpy()
    assert scores[2] > scores[3]


@given(
    events=st.lists(st.tuples(st.integers(2, 8), st.integers(0, 30)), min_size=1, max_size=25),
    nows=st.lists(st.integers(-5, 40), min_size=1, max_size=8),
    half_life=st.sampled_from([0.5, 4.0, 100.0]),
    weighted=st.booleans(),
)
def test_equals_nested_loops(
    events: list[tuple[int, int]], nows: list[int], half_life: float, weighted: bool
) -> None:
    rows, times = [row for row, _ in events], [float(time) for _, time in events]
    weights = [1.0 + place % 3 * weighted for place in range(len(events))]
    train = interactions(rows, times, weights if weighted else None)
    scores = RecentPopularity.fit(train, 9, half_life=half_life).score(
        cases_at(list(map(float, nows)))
    )
    for got, now in zip(scores.tolist(), nows, strict=True):
        expected = [0.0] * 9
        for row, time, weight in zip(rows, times, weights, strict=True):
            if time <= now:
                expected[row] += weight * 0.5 ** ((now - time) / half_life)
        counts = np.array(expected)
        some = counts > 0
        if not some.any():
            assert not any(got)
            continue
        logs = np.log(counts[some] / counts.max())
        np.testing.assert_allclose(np.array(got)[some], logs, rtol=1e-5, atol=1e-6)
        assert np.array(got)[~some].max() < logs.min()
        assert np.isfinite(got).all()


def test_a_case_without_a_time_is_asked_at_the_end_of_training() -> None:
    fitted = RecentPopularity.fit(interactions([2, 3], [0, 10]), 4, half_life=10.0)
    at_the_end = fitted.score(cases_at([10.0])).tolist()
    assert at_the_end[0][2:] == [pytest.approx(math.log(0.5)), 0]
    assert fitted.score(cases_at(None)).tolist() == at_the_end
    assert fitted.score(cases_at([np.nan])).tolist() == at_the_end


def test_cases_in_the_order_of_time_share_one_walk() -> None:
    """Cases in ascending time are counted in one walk; an earlier time starts the count again."""
    rng = np.random.default_rng(0)
    train = interactions(rng.integers(2, 9, 60).tolist(), rng.integers(0, 30, 60).tolist())
    fitted = RecentPopularity.fit(train, 9, half_life=4.0)
    nows = rng.integers(-3, 35, 20).astype(np.float64)
    nows[3] = np.nan
    cases = cases_at(nows.tolist())
    expected = RecentPopularity.fit(train, 9, half_life=4.0).score(cases)
    for _ in range(2):
        order = np.argsort(nows, kind="stable")
        for start in range(0, 20, 3):
            here = order[start : start + 3]
            assert torch.equal(fitted.score(cases.take(here)), expected[here])
    assert torch.equal(fitted.score(cases), expected)


def test_ranked_in_the_order_of_time_each_case_has_its_own_answer() -> None:
    class Seen(RecentPopularity):
        """Notes at which times it is asked."""

        def score(self, cases: Cases) -> torch.Tensor:
            assert cases.times is not None
            asked.extend(cases.times.tolist())
            return super().score(cases)

    asked: list[float] = []
    train = interactions([2, 3, 4, 5], [0, 10, 20, 30])
    cases = cases_at([31.0, 1.0, 21.0, 11.0])
    for scorer in (
        Seen.fit(train, 6, half_life=1.0),
        PopularWhenCold(Seen.fit(train, 6, half_life=1.0), Popularity.fit(train, 6)),
    ):
        asked.clear()
        found = rank(scorer, cases, 1, num_item_rows=6, chunk_size=1)
        assert found.item_rows[:, 0].tolist() == [5, 2, 4, 3]
        assert asked == [1.0, 11.0, 21.0, 31.0]


def test_negatives_and_events_without_a_time_teach_nothing() -> None:
    train = interactions([2, 3, 4], [0, 0, np.nan], labels=[1, 0, 1])
    fitted = RecentPopularity.fit(train, 5, half_life=10.0)
    assert fitted.score(cases_at([0.0])).tolist() == [[-1, -1, 0, -1, -1]]


@pytest.mark.parametrize("times", [None, [np.nan, np.nan]])
def test_without_times_it_is_refused(times: list[float] | None) -> None:
    with pytest.raises(ConfigError, match=r"recent_popularity must have times .* got none"):
        RecentPopularity.fit(interactions([2, 3], times), 4, half_life=1.0)


@pytest.mark.parametrize("half_life", [0.0, -1.0, np.inf, np.nan])
def test_half_life_out_of_range(half_life: float) -> None:
    with pytest.raises(ValueError, match=rf"half_life must be above 0 and finite, got {half_life}"):
        RecentPopularity.fit(interactions([2], [0.0]), 3, half_life=half_life)


def fashions() -> Dataset:
    """Forty weeks; each has two items that everybody likes, of 80."""
    draw = np.random.default_rng(0)
    rows = []
    for query in range(300):
        week = int(draw.integers(1, 39))
        for step in range(3):
            moment = (week + step / 3) * 604_800 + int(draw.integers(1_000))
            rows.append((query, 2 * week + int(draw.integers(2)), moment))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Float64))
    return split(prepare(frame).dataset)


def test_it_follows_a_fashion() -> None:
    dataset = fashions()
    chosen = choose_recent_popularity(dataset)
    assert chosen.half_life < 10 * 604_800
    validation = Validation.of(dataset)
    popularity = Popularity.fit(dataset.part(Part.TRAIN), dataset.items.ids.num_rows)
    assert validation.quality(chosen) > 2 * validation.quality(popularity)


def test_all_at_once_is_no_reason_to_fail() -> None:
    rows = [(query, item, 5) for query in range(10) for item in range(query % 3, query % 3 + 4)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    chosen = choose_recent_popularity(split(prepare(frame).dataset))
    assert 0 < chosen.half_life < np.inf


def test_blocks_of_events_add_up_to_what_all_at_once_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, times = rng.integers(2, 9, 200).tolist(), rng.integers(0, 100, 200).astype(float).tolist()
    fitted = RecentPopularity.fit(interactions(rows, times), 9, half_life=7.0)
    asked = Cases(
        query_rows=np.full(3, 2, np.int32),
        histories=Histories.empty(3),
        targets=Histories.empty(3),
        times=np.array([20.0, 90.0, 55.0]),
    )
    whole = fitted.score(asked)
    monkeypatch.setattr(mapped, "BLOCK_VALUES", 7)
    again = RecentPopularity.fit(interactions(rows, times), 9, half_life=7.0)
    assert torch.equal(again.score(asked), whole)
