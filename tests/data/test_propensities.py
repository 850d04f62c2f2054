"""Propensities of positions: worked numbers, a naive reference, known ones recovered from clicks."""

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.positions import Propensities, harvested, power_law

# One cell: pair, position, times shown, clicks.
Cell = tuple[int, int, int, int]


def log_of(
    cells: list[Cell],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the pair, the position and the click of each time something was shown."""
    shown = np.array([cell[2] for cell in cells])
    clicked = [np.arange(cell[2]) < cell[3] for cell in cells]
    pairs = np.repeat([cell[0] for cell in cells], shown)
    return pairs, np.repeat([cell[1] for cell in cells], shown), np.concatenate(clicked)


def values_of(cells: list[Cell]) -> list[float]:
    return [float(value) for value in harvested(*log_of(cells)).values]


# --- worked numbers ---


def test_one_document_above_and_below() -> None:
    """Both positions show it equally often; 30 clicks above and 10 below, and 20 by the power law.

    Of the latter a third fall below (2 : 1). So (10 + 20/3) of 60 are below, 5 of 18, and p is 5 / 13.
    The rate of clicks alone would say 1/3, the power law 1/2.
    """
    assert values_of([(0, 1, 100, 30), (0, 2, 100, 10)]) == pytest.approx([1, 5 / 13], abs=1e-4)


def test_the_law_is_that_of_the_positions_and_not_of_their_places_in_a_list() -> None:
    """Positions 3 and 5, 25 clicks each: (25 + 20 * 3/8) of 70 are below, 13 of 28: p is 13 / 15."""
    cells = [(0, 3, 50, 25), (0, 5, 50, 25)]
    assert values_of(cells) == pytest.approx([1, 13 / 15], abs=1e-4)
    assert harvested(*log_of(cells)).positions.tolist() == [3, 5]


def test_relevance_is_not_taken_for_position() -> None:
    """What is relevant stood above nine times in ten, and p is 1/2 for both documents.

    The rates of clicks at the two positions are .46 and .07, so that they would say .15.
    """
    cells = [(0, 1, 9000, 4500), (0, 2, 1000, 250), (1, 1, 1000, 100), (1, 2, 9000, 450)]
    assert values_of(cells) == pytest.approx([1, 0.5], abs=2e-3)


def test_how_often_a_position_was_shown_is_no_preference_for_it() -> None:
    """Rates of .4 and .1, where the lower position was shown ten times as often: p is 1/4."""
    cells = [(0, 1, 10_000, 4_000), (0, 2, 100_000, 10_000)]
    assert values_of(cells) == pytest.approx([1, 0.25], abs=2e-3)


def test_what_stood_at_one_position_says_nothing() -> None:
    told = [(0, 1, 100, 30), (0, 2, 100, 10)]
    more = [*told, (1, 1, 500, 400), (2, 2, 500, 1)]
    assert values_of(more) == pytest.approx(values_of(told), abs=1e-9)
    assert harvested(*log_of(more)).num_clicks == 40


def test_positions_of_which_nothing_is_known_follow_by_the_power_law() -> None:
    """Position 2 has half of what 1 has; what is at 4 and 8 was never at another: halved each time."""
    cells = [(0, 1, 9000, 4000), (0, 2, 9000, 2000), (1, 4, 50, 9), (2, 8, 50, 9)]
    assert values_of(cells) == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8], rel=1e-3)


def test_a_rise_by_noise_is_pooled() -> None:
    """Positions 2 and 3 were clicked alike often but for noise: the later one is not above the earlier."""
    cells = [(0, 1, 1000, 600), (0, 2, 1000, 200), (0, 3, 1000, 230)]
    first, second, third = values_of(cells)
    assert first == 1
    assert second == pytest.approx(third)
    assert 0.33 < second < 0.38


@pytest.mark.parametrize(
    "cells",
    [
        [(0, 1, 10, 3), (1, 2, 10, 3), (2, 4, 10, 1)],
        [(0, 1, 10, 0), (0, 2, 10, 0), (1, 4, 1, 1)],
    ],
    ids=["nothing at two positions", "no click on what was"],
)
def test_the_power_law_is_what_remains(cells: list[Cell]) -> None:
    found = harvested(*log_of(cells))
    assert found.num_clicks == 0
    assert found.values.tolist() == [1, 0.5, 0.25]
    assert power_law(np.array([4, 1, 2, 2])).values.tolist() == [1, 0.5, 0.25]


# --- a naive reference ---


def reference(cells: list[Cell]) -> dict[int, float]:
    """Return the propensities by fixed-point steps on floats, and the pooling by its min-max formula."""
    by_pair: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for pair, position, shown, clicks in cells:
        cell = by_pair[pair].setdefault(position, [0, 0])
        cell[0] += shown
        cell[1] += clicks
    positions = sorted({cell[1] for cell in cells})
    used = [c for c in by_pair.values() if len(c) > 1 and sum(x[1] for x in c.values()) > 0]
    p = dict.fromkeys(positions, 1.0)
    clicks_at = {k: sum(c[k][1] for c in used if k in c) for k in positions}
    neighbours = list(pairwise(positions))
    for _ in range(3000):
        new = {}
        for k in positions:
            got, expected = float(clicks_at[k]), 0.0
            for c in used:
                if k in c:
                    total = sum(x[0] * p[j] for j, x in c.items())
                    expected += sum(x[1] for x in c.values()) * c[k][0] / total
            for a, b in neighbours:
                if k in (a, b):
                    got += 20 * (b if k == a else a) / (a + b)
                    expected += 20 / (p[a] + p[b])
            new[k] = got / expected
        p = {k: value / new[positions[0]] for k, value in new.items()}
    logs = [math.log(p[k]) for k in positions]
    weights = [clicks_at[k] + 20 for k in positions]

    def mean(a: int, b: int) -> float:
        pieces = range(a, b + 1)
        return sum(logs[i] * weights[i] for i in pieces) / sum(weights[i] for i in pieces)

    n = len(positions)
    pooled = [min(max(mean(a, b) for b in range(k, n)) for a in range(k + 1)) for k in range(n)]
    return {k: math.exp(x - pooled[0]) for k, x in zip(positions, pooled, strict=True)}


cells_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 30), st.integers(0, 30)).map(
        lambda cell: (cell[0], cell[1], cell[2], min(cell[2], cell[3]))
    ),
    min_size=1,
    max_size=12,
)


@given(cells_of)
def test_equals_a_naive_reference(cells: list[Cell]) -> None:
    found = harvested(*log_of(cells))
    if not found.num_clicks:
        return
    wanted = reference(cells)
    assert found.positions.tolist() == list(wanted)
    np.testing.assert_allclose(found.values, list(wanted.values()), rtol=2e-3)


@given(cells_of, st.integers(0, 1000))
def test_is_never_rising_and_the_same_in_any_order(cells: list[Cell], seed: int) -> None:
    pairs, positions, clicked = log_of(cells)
    found = harvested(pairs, positions, clicked)
    assert found.values[0] == 1
    assert (np.diff(found.values) <= 0).all()
    assert (found.values > 0).all()
    order = np.random.default_rng(seed).permutation(len(pairs))
    again = harvested(7 * (3 - pairs[order]), positions[order], clicked[order])
    np.testing.assert_allclose(again.values, found.values, rtol=1e-3)


# --- known propensities are recovered ---


def searches(
    looked_at: npt.NDArray[np.float64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return 9,000 searches of 300 queries, whose ten documents one of two rankers put in order."""
    rng = np.random.default_rng(seed)
    relevance = rng.beta(1, 3, (300, 10))
    ranked = np.stack([np.argsort(-relevance - rng.normal(0, 0.3, (300, 10))) for _ in range(2)])
    query = np.repeat(np.arange(300), 30)
    shown = ranked[rng.integers(0, 2, len(query)), query]
    clicked = rng.random(shown.shape) < looked_at * relevance[query[:, None], shown]
    position = np.broadcast_to(np.arange(1, 11), shown.shape)
    return (query[:, None] * 10 + shown).ravel(), position.ravel(), clicked.ravel()


@pytest.mark.parametrize(
    "looked_at",
    [
        1 / np.arange(1, 11),
        1 / np.sqrt(np.arange(1, 11)),
        np.array([1, 0.95, 0.9, 0.4, 0.35, 0.3, 0.3, 0.3, 0.1, 0.1]),
    ],
    ids=["1/k", "1/sqrt(k)", "in steps"],
)
def test_known_propensities_are_recovered(looked_at: npt.NDArray[np.float64]) -> None:
    pairs, positions, clicked = searches(looked_at, seed=0)
    found = harvested(pairs, positions, clicked).values
    error = np.abs(np.log(found / looked_at))
    assert error.max() < 0.25
    assert np.sqrt(np.mean(error**2)) < 0.12
    # Better ones stand above, so that the rate of clicks falls faster than attention does.
    rates = np.bincount(positions, clicked)[1:]
    assert np.abs(np.log(rates / rates[0] / looked_at)).max() > 0.5


# --- weights, and errors ---


def test_a_click_weighs_the_inverse_up_to_ten() -> None:
    known = Propensities(np.array([1, 2, 5]), np.array([1, 0.5, 0.02]), 9)
    asked = np.array([5, 1, 2, 2, 3, 99])
    assert known.weights(asked).tolist() == [10, 1, 2, 2, 2, 10]
    later = Propensities(np.array([3, 4]), np.array([1, 0.5]), 9)
    assert later.weights(np.array([1, 3, 4])).tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("pairs", "positions", "clicked", "message"),
    [
        ([0, 0], [1], [True], r"must be equally long, got 2, 1 and 1\."),
        ([0], [1], [True, False], r"must be equally long, got 1, 1 and 2\."),
        ([0, 0], [1, 0], [True, True], r"positions must be whole numbers from 1, got 0\."),
        ([], [], [], r"positions must be whole numbers from 1, got none\."),
    ],
)
def test_what_cannot_be_read_is_refused(
    pairs: list[int], positions: list[int], clicked: list[bool], message: str
) -> None:
    arrays = np.array(pairs, np.int64), np.array(positions, np.int64), np.array(clicked, np.bool_)
    with pytest.raises(ValueError, match=message):
        harvested(*arrays)


def test_far_positions_leave_no_room_for_their_sum_in_an_int32() -> None:
    """By the power law, which is all that is known of them: 1 : 2, whatever their type."""
    far = np.array([2**30, 2**30, 2**31 - 1, 2**31 - 1], np.int32)
    clicked = np.array([True, False, True, False])
    found = harvested(np.zeros(4, np.int64), far, clicked).values
    assert found == pytest.approx(
        harvested(np.zeros(4, np.int64), far.astype(np.int64), clicked).values
    )
    assert found[1] < 0.6
