"""What follows what, beside nested loops over every pair of events."""

from collections import defaultdict
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from twotower.arrays import Ints, Rows
from twotower.second_stage import follows as module
from twotower.second_stage.follows import Follows
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW

Weights = dict[tuple[int, int], float]

lists = st.lists(st.lists(st.integers(UNKNOWN_ROW, 9), max_size=12), max_size=8)


def ragged(queries: list[list[int]]) -> tuple[Ints, Rows]:
    offsets = np.cumsum([0, *map(len, queries)])
    return offsets, np.array([row for query in queries for row in query], np.int32)


def naive(queries: list[list[int]]) -> tuple[Weights, Weights]:
    """Return ``near`` and ``next`` of every pair that occurs."""
    counts: dict[int, int] = defaultdict(int)
    near: Weights = defaultdict(float)
    following: Weights = defaultdict(float)
    for query in queries:
        for place, row in enumerate(query):
            counts[row] += 1
            for distance in range(1, 6):
                if place + distance >= len(query):
                    continue
                later = query[place + distance]
                if row == later or min(row, later) < FIRST_ROW:
                    continue
                near[row, later] += 0.7 ** (distance - 1)
                following[row, later] += distance == 1
    for weights in (near, following):
        for one, other in weights:
            weights[one, other] /= np.sqrt((counts[one] + 5) * (counts[other] + 5))
    return near, following


def of_pairs(found: Follows) -> tuple[Weights, Weights]:
    """Return the weights that were kept, by pair."""
    near, following = {}, {}
    for row in range(found.num_item_rows):
        here = slice(found.offsets[row], found.offsets[row + 1])
        others = found.item_rows[here].tolist()
        assert others == sorted(set(others))
        for other, *weights in zip(others, found.near[here], found.next[here], strict=True):
            near[row, other], following[row, other] = map(float, weights)
    return near, following


@given(lists)
def test_it_is_fitted_as_nested_loops_would(queries: list[list[int]]) -> None:
    found = Follows.fit(*ragged(queries), 10)
    assert found.offsets.dtype == np.int64
    assert found.item_rows.dtype == np.int32
    assert found.near.dtype == found.next.dtype == np.float32
    near, following = of_pairs(found)
    expected, expected_next = naive(queries)
    assert near == pytest.approx(dict(expected), rel=1e-5)
    assert following == pytest.approx({pair: expected_next.get(pair, 0.0) for pair in near})


def test_numbers_by_hand() -> None:
    found = Follows.fit(*ragged([[2, 3, 4], [2, 3]]), 6)
    near, following = of_pairs(found)
    assert near == pytest.approx({(2, 3): 2 / 7, (2, 4): 0.7 / 42**0.5, (3, 4): 1 / 42**0.5})
    assert following == pytest.approx({(2, 3): 2 / 7, (2, 4): 0, (3, 4): 1 / 42**0.5})


@pytest.mark.parametrize("rows_at_once", [2**16, 7])
def test_the_fifty_nearest_are_kept(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(module, "_ROWS", rows_at_once)
    rng = np.random.default_rng(1)
    queries = [rng.permutation(np.arange(2, 82))[:30].tolist() for _ in range(60)]
    queries += [[2, other] for other in range(3, 82)]  # equal weights beside others
    near, _ = of_pairs(Follows.fit(*ragged(queries), 82))
    expected, _ = naive(queries)
    assert any(sum(one == row for one, _ in expected) > 60 for row in range(82))
    for row in range(82):
        own = {other: weight for (one, other), weight in expected.items() if one == row}
        kept = {other: weight for (one, other), weight in near.items() if one == row}
        assert len(kept) == min(50, len(own))
        assert kept == pytest.approx({other: own[other] for other in kept}, rel=1e-5)
        least = min(kept.values(), default=0.0)
        assert all(own[other] <= least * (1 + 1e-5) for other in own.keys() - kept.keys())


def test_of_equal_followers_the_first_rows_are_kept() -> None:
    near, _ = of_pairs(Follows.fit(*ragged([[2, other] for other in range(70, 2, -1)]), 71))
    assert sorted(near) == [(2, other) for other in range(3, 53)]


def test_of_many_events_every_few_queries_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    queries = [rng.integers(2, 30, rng.integers(0, 9)).tolist() for _ in range(50)]
    num = sum(map(len, queries))
    monkeypatch.setattr(module, "_MOST_EVENTS", num // 3)  # so that every fourth is read
    thinned, whole = Follows.fit(*ragged(queries), 30), Follows.fit(*ragged(queries[::4]), 30)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(thinned, name), values)
    monkeypatch.setattr(module, "_MOST_EVENTS", num)
    assert len(Follows.fit(*ragged(queries), 30).item_rows) > len(whole.item_rows)


def test_of_nothing() -> None:
    nothing: list[list[list[int]]] = [[], [[]], [[2]], [[2, 2, 2]], [[1, 0, 1]]]
    for queries in nothing:
        found = Follows.fit(*ragged(queries), 5)
        assert found.offsets.tolist() == [0] * 6
        near, following = found.after(np.array([[2]], np.int32), np.array([[3, 4]], np.int32))
        assert near.tolist() == following.tolist() == [[0, 0]]


def naive_after(found: Follows, recent: Rows, candidates: Rows) -> tuple[list[float], list[float]]:
    weights = of_pairs(found)
    sums: list[list[float]] = []
    for kind, newest in ((0, 10), (1, 3)):
        sums.append([])
        for candidate in candidates.tolist():
            events = list(enumerate(recent[::-1].tolist()))[:newest]
            sums[-1].append(
                sum(
                    0.5 ** (age / 4) * weights[kind].get((row, candidate), 0) for age, row in events
                )
            )
    return sums[0], sums[1]


@given(lists, st.lists(st.lists(st.integers(2, 14), max_size=15), min_size=1, max_size=5))
def test_it_is_looked_up_as_nested_loops_would(
    queries: list[list[int]], histories: list[list[int]]
) -> None:
    """Rows from 10 on came later than the fit."""
    found = Follows.fit(*ragged(queries), 10)
    recent = np.full((len(histories), 15), PADDING_ROW, np.int32)
    for line, history in enumerate(histories):
        recent[line, 15 - len(history) :] = history
    rng = np.random.default_rng(0)
    candidates = np.array([rng.permutation(np.arange(2, 15))[:9] for _ in histories], np.int32)
    candidates[0, 5:] = PADDING_ROW
    near, following = found.after(recent, candidates)
    assert near.dtype == following.dtype == np.float32
    for line in range(len(histories)):
        expected = naive_after(found, recent[line], candidates[line])
        np.testing.assert_allclose(near[line], expected[0], rtol=1e-5)
        np.testing.assert_allclose(following[line], expected[1], rtol=1e-5)
    short = found.after(recent[:, 12:], candidates)[1]  # the window may be shorter
    np.testing.assert_array_equal(short, following)


def test_an_event_counts_half_of_the_one_four_later() -> None:
    found = Follows.fit(*ragged([list(pair) for pair in pairwise(range(2, 10))]), 10)
    recent = np.array([[2, 0, 0, 0, 0], [0, 0, 0, 0, 2]], np.int32)
    near, following = found.after(recent, np.full((2, 1), 3, np.int32))
    assert near[0, 0] == pytest.approx(near[1, 0] / 2)
    assert near[1, 0] == following[1, 0] > following[0, 0] == 0  # of the last three alone


def test_no_query_and_no_candidate() -> None:
    found = Follows.fit(*ragged([[2, 3]]), 5)
    for num, width in ((0, 4), (2, 0)):
        recent, candidates = np.full((num, 3), 2, np.int32), np.zeros((num, width), np.int32)
        assert found.after(recent, candidates)[0].shape == (num, width)
