"""What is drawn, and whether it was as probable as is told."""

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import polars as pl
import pytest

from twotower.index.filter_columns import read_column
from twotower.rules.explore import draw, generator
from twotower.rules.selection import ColumnValues

FIRST = 2
TAGS = [["a"], ["a", "b"], ["b"], None, ["a"], [], ["c", "c"], ["c"]]


def column_of(values: list[list[str] | None]) -> ColumnValues:
    column = ColumnValues()
    column.append(read_column(pl.Series("tags", values, dtype=pl.List(pl.String)), None))
    return column


@cache
def exactly(num: int, most: int) -> dict[int, Fraction]:
    """Return how probable each item is, by going through all orders."""
    sets = [set(value or []) for value in TAGS]
    orders = list(itertools.permutations(range(len(TAGS)), num))
    kept = dict.fromkeys(range(len(TAGS)), 0)
    for order in orders:
        for place, item in enumerate(order):
            kept[item] += sum(bool(sets[item] & sets[b]) for b in order[:place]) < most
    return {item: Fraction(count, len(orders)) for item, count in kept.items()}


@pytest.mark.parametrize(("places", "share"), [(4, 0.5), (6, 0.5), (5, 0.5), (8, 1.0), (20, 0.3)])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_propensities_are_those_of_all_orders(places: int, share: float, most: int) -> None:
    wanted = Fraction(share).limit_denominator(100) * places
    least = int(wanted)
    fraction = wanted - least
    lower, upper = (exactly(min(n, len(TAGS)), most) for n in (least, least + 1))
    column, candidates = column_of(TAGS), np.arange(FIRST, FIRST + len(TAGS))
    told: dict[int, float] = {}
    for seed in range(60):
        drawn = draw(generator(seed, "q"), candidates, places, share, [column], [most])
        told |= dict(zip(drawn.item_rows, drawn.propensities, strict=True))
        values = [value for row in drawn.item_rows for value in set(TAGS[row - FIRST] or [])]
        assert all(values.count(value) <= most for value in values)
        assert len(set(drawn.item_rows)) == len(drawn.item_rows)
    assert set(told) == set(candidates.tolist())
    for row, propensity in told.items():
        exact = (1 - fraction) * lower[row - FIRST] + fraction * upper[row - FIRST]
        assert propensity == pytest.approx(float(exact), rel=1e-12)


def test_items_are_drawn_as_often_as_is_told() -> None:
    column, candidates = column_of(TAGS), np.arange(FIRST, FIRST + len(TAGS))
    times, told = np.zeros(FIRST + len(TAGS)), np.zeros(FIRST + len(TAGS))
    draws = 1000
    for seed in range(draws):
        drawn = draw(generator(seed, "q"), candidates, 9, 0.5, [column], [2])
        times[drawn.item_rows] += 1
        told[drawn.item_rows] = drawn.propensities
    p = told[FIRST:]
    np.testing.assert_array_less(
        np.abs(times[FIRST:] / draws - p), 4 * np.sqrt(p * (1 - p) / draws)
    )


def test_a_sum_by_inverse_propensities_is_that_of_all_candidates() -> None:
    column, candidates = column_of(TAGS), np.arange(FIRST, FIRST + len(TAGS))
    worth = np.array([3.0, -1.0, 2.0, 5.0, 0.5, 7.0, 1.0, 4.0])
    found = [
        sum(worth[row - FIRST] / p for row, p in zip(*drawn[:2], strict=True))
        for drawn in (
            draw(generator(seed, "q"), candidates, 9, 0.5, [column], [2]) for seed in range(1000)
        )
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - worth.sum()) < 4 * error
    assert error < 1


def test_the_number_is_the_share_or_one_more() -> None:
    candidates = np.arange(FIRST, 102)
    for share, places, numbers in (
        (0.1, 10, {1}),
        (0.25, 10, {2, 3}),
        (0.0, 10, {0}),
        (1.0, 7, {7}),
    ):
        drawn = [draw(generator(seed, "q"), candidates, places, share) for seed in range(400)]
        assert {len(each.item_rows) for each in drawn} == numbers
        assert np.mean([len(each.item_rows) for each in drawn]) == pytest.approx(
            share * places, abs=0.1
        )
        for each in drawn:
            assert each.propensities == pytest.approx([share * places / 100] * len(each.item_rows))


def test_no_more_than_there_are() -> None:
    drawn = draw(generator(0, "q"), np.arange(FIRST, 5), 10, 1.0)
    assert sorted(drawn.item_rows) == [2, 3, 4]
    assert drawn.propensities == [1.0, 1.0, 1.0]
    assert draw(generator(0, "q"), np.arange(0), 10, 1.0).item_rows == []


def test_chance_depends_on_the_seed_and_the_query_alone() -> None:
    candidates = np.arange(FIRST, 1000)

    def drawn(seed: int, query: str) -> list[int]:
        return draw(generator(seed, query), candidates, 10, 0.5).item_rows

    assert drawn(3, "id 7") == drawn(3, "id 7")
    assert drawn(3, "id 7") != drawn(4, "id 7")
    assert drawn(3, "id 7") != drawn(3, "id 8")


def test_a_column_of_which_no_item_has_a_value_has_no_rows() -> None:
    assert column_of([None, []]).rows_with([]).tolist() == [False] * (FIRST + 2)
    assert column_of([]).rows_with([]).tolist() == [False] * FIRST
