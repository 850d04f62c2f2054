"""What each kind of feature makes of its values, worked by hand."""

import math
from datetime import date
from time import process_time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import DataError
from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.features.transforms import transform_of


def fit(kind: str, values: pl.Series, separator: str = "", min_count: int = 1) -> Transform:
    feature = Feature("price", "item", kind, "", separator)
    return transform_of(feature).fit(feature, values, min_count)


class TestCategories:
    def test_missing_is_0_unseen_is_1(self) -> None:
        transform = fit("categorical", pl.Series(["b", "a", "b"]))
        rows = transform.apply(pl.Series(["a", "b", "new", None]))
        assert rows.tolist() == [2, 3, 1, 0]
        assert transform.is_known(rows).tolist() == [True, True, False, False]

    def test_a_missing_key_is_as_unknown_as_an_unseen_one(self) -> None:
        rows = fit("id", pl.Series([7, 8])).apply(pl.Series([7, 9, None]))
        assert rows.tolist() == [2, 1, 1]

    def test_rare_categories_are_unknown(self) -> None:
        transform = fit("categorical", pl.Series(["a", "b", "b", None, None]), min_count=2)
        assert transform.apply(pl.Series(["a", "b", None])).tolist() == [1, 2, 0]

    def test_nan_in_a_column_of_whole_floats_does_not_change_its_other_values(self) -> None:
        transform = fit("categorical", pl.Series([1.0, float("nan"), 2.0]))
        served = pl.Series([1.0, 2.5, float("nan"), 2.0])
        assert transform.apply(served).tolist() == [2, 1, 0, 3]
        assert transform.apply(pl.Series([1, 2])).tolist() == [2, 3]
        assert transform.apply(pl.Series(["1", "2"])).tolist() == [2, 3]

    def test_booleans_are_found_as_json_and_as_text(self) -> None:
        transform = fit("categorical", pl.Series([True, False]))
        assert transform.apply(pl.Series([False, True])).tolist() == [2, 3]
        assert transform.apply(pl.Series(["false", "true"])).tolist() == [2, 3]


class TestTags:
    transform = fit("tags", pl.Series(["b|a", "c", None]), "|")

    def test_rows_of_the_known_ones_in_order_padded_on_the_right(self) -> None:
        rows = self.transform.apply(pl.Series(["c|new|a", "new", "", None, "b"]))
        assert rows.tolist() == [[4, 2], [0, 0], [0, 0], [0, 0], [3, 0]]
        assert self.transform.is_known(rows).tolist() == [True, False, False, False, True]

    def test_a_list_longer_than_any_in_training_is_cut(self) -> None:
        assert self.transform.apply(pl.Series(["a|b|c"])).tolist() == [[2, 3]]

    def test_a_list_served_in_place_of_a_string_is_read(self) -> None:
        assert self.transform.apply(pl.Series([["b", "a"], ["c"]])).tolist() == [[3, 2], [4, 0]]

    def test_a_tag_twice_in_a_line_is_one(self) -> None:
        assert self.transform.apply(pl.Series(["a|a|b"])).tolist() == [[2, 3]]
        twice = fit("tags", pl.Series(["a|a", "b", "b|c"]), "|", min_count=2)
        assert twice.own_vocabulary().ids.to_list() == ["b"], "min_count counts lines"

    def test_very_long_lists_are_cut_at_32(self) -> None:
        many = pl.Series([[str(tag) for tag in range(100)]])
        assert fit("tags", many).apply(many).shape == (1, 32)


class TestNumbers:
    def test_median_and_quartiles(self) -> None:
        # Of 0, 1, 2, 3, 10: median 2, quartiles 1 and 3; skewness 1.4 leaves the logarithm out.
        transform = fit("number", pl.Series([0, 1, 2, 3, 10]))
        lines = transform.apply(pl.Series([2.0, 3.0, 10.0, -2.0, None, float("nan"), math.inf]))
        expected = [[0, 0], [0.5, 0], [4, 0], [-2, 0], [0, 1], [0, 1], [0, 1]]
        assert lines.tolist() == expected
        assert transform.is_known(lines).tolist() == [True] * 4 + [False] * 3

    def test_no_spread_between_quartiles_falls_back_to_the_deviation(self) -> None:
        # 9 zeros and -10: the quartiles are 0; mean -1, deviation sqrt(9/10 + 81/10) = 3.
        transform = fit("number", pl.Series([0.0] * 9 + [-10.0]))
        assert transform.apply(pl.Series([-10.0, 3.0]))[:, 0].tolist() == pytest.approx(
            [-10 / 3, 1]
        )

    def test_skewed_counts_are_read_as_logarithms(self) -> None:
        # log1p: 0, 0, ln 2, ln 2, ln 1e6; median ln 2, quartiles 0 and ln 2.
        transform = fit("number", pl.Series([0, 0, 1, 1, 999_999] + [0, 1] * 8))
        scaled = transform.apply(pl.Series([0.0, 1.0, 3.0, -0.5, -7.0]))[:, 0]
        assert scaled[2] - scaled[1] == pytest.approx(scaled[1] - scaled[0])
        assert scaled[3] == scaled[4] == scaled[0], "a negative count is no count"

    def test_skewed_numbers_with_a_negative_one_stay_as_they_are(self) -> None:
        transform = fit("number", pl.Series([-1, *range(20), 1000]))
        scaled = transform.apply(pl.Series([0, 1, 2]))[:, 0]
        assert scaled[2] - scaled[1] == pytest.approx(scaled[1] - scaled[0])

    def test_outliers_are_cut_at_10(self) -> None:
        transform = fit("number", pl.Series([0, 1, 2, 3, 10]))
        assert transform.apply(pl.Series([1e9, -1e9]))[:, 0].tolist() == [10, -10]

    def test_an_infinite_value_is_refused(self) -> None:
        message = "item feature 'price' must be finite, got -inf for 2 rows; make them null"
        with pytest.raises(DataError, match=message):
            fit("number", pl.Series([1.0, -math.inf, math.inf, float("nan"), None]))
        with pytest.raises(DataError, match="got inf for 1 rows"):
            fit("number", pl.Series(["1", "inf"]))

    def test_nan_is_missing_and_no_error(self) -> None:
        with_nan = fit("number", pl.Series([0.0, 1.0, float("nan"), 2.0, 3.0, None, 10.0]))
        without = fit("number", pl.Series([0, 1, 2, 3, 10]))
        assert with_nan.numbers == without.numbers


class TestTimes:
    def test_date_flag_and_cycles(self) -> None:
        # 1970-01-01 was a Thursday; 10.5 days later the day is half over and the week 3.5 / 7.
        transform = fit("time", pl.Series([0.0, 2 * 10.5 * 86_400]))
        (line,) = transform.apply(pl.Series([10.5 * 86_400]))
        year = 2 * math.pi * 10.5 / 365.25
        expected = [0, 0, -1, 0, -1, math.sin(year), math.cos(year), 0]
        assert line.tolist() == pytest.approx(expected, abs=1e-6)

    def test_the_date_is_scaled_by_the_deviation_around_the_median(self) -> None:
        transform = fit("time", pl.Series([date(2020, 1, 1), date(2020, 1, 3)]))
        dates = pl.Series([date(2020, 1, 1), date(2020, 1, 2), date(2020, 1, 3), date(2999, 1, 1)])
        assert transform.apply(dates)[:, 0].tolist() == pytest.approx([-1, 0, 1, 10])

    def test_what_is_no_time_is_all_0_with_the_flag(self) -> None:
        transform = fit("time", pl.Series([date(2020, 1, 1), date(2020, 1, 3)]))
        lines = transform.apply(pl.Series(["soon", None, "2020-01-02"]))
        assert lines[:2].tolist() == [[0] * 7 + [1]] * 2
        assert transform.is_known(lines).tolist() == [False, False, True]

    def test_one_moment_is_the_same_in_every_type(self) -> None:
        transform = fit("time", pl.Series([date(2020, 1, 1), date(2020, 1, 3)]))
        one = pl.Series([date(2020, 1, 2)])
        expected = transform.apply(one)
        for same in (
            one.cast(pl.Datetime("ms")),
            one.cast(pl.Datetime("ns")),
            one.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            one.cast(pl.String),
            pl.Series(["2020-01-02T00:00:00Z"]),
            pl.Series([1577923200]),
        ):
            assert np.array_equal(transform.apply(same), expected)


eighths = st.one_of(st.none(), st.integers(-(10**6), 10**6).map(lambda number: number / 8))


class TestVectors:
    def test_standardised_by_column(self) -> None:
        # Column 0: mean 2, deviation 1. Column 1: 5 is all that is known, so it is divided by 1.
        transform = fit("vector", pl.Series([[1.0, 5.0], [3.0, None], None, [None, 5.0]]))
        lines = transform.apply(pl.Series([[3.0, 6.0], [None, 5.0], [0.0, None]]))
        assert lines.tolist() == [[1, 1], [0, 0], [-2, 0]]

    def test_missing_or_of_another_length_is_the_mean(self) -> None:
        transform = fit("vector", pl.Series([[1.0, 5.0], [3.0, 7.0]]))
        lines = transform.apply(pl.Series([None, [1.0], [1.0, 2.0, 3.0], [math.inf, 5.0]]))
        assert lines.tolist() == [[0, 0], [0, 0], [0, 0], [0, -1]]
        assert transform.is_known(lines).tolist() == [False, False, False, True]

    def test_a_dimension_without_a_value_or_without_spread_says_nothing(self) -> None:
        transform = fit("vector", pl.Series([[1.0, None, 4.0], [3.0, None, 4.0]]))
        assert transform.apply(pl.Series([[3.0, None, 4.0]])).tolist() == [[1, 0, 0]]

    def test_outliers_are_cut_at_10(self) -> None:
        transform = fit("vector", pl.Series([[1.0], [3.0]]))
        assert transform.apply(pl.Series([[1e300], [-1e300]])).tolist() == [[10], [-10]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                pl.Series([[1.0, math.inf], [1.0, 2.0]]),
                "be finite, got inf for 1 rows; make them null",
            ),
            (pl.Series([[1.0], [1.0, 2.0]]), r"lists of one length, got lengths \[1, 2\]; pad"),
        ],
    )
    def test_infinite_numbers_and_unequal_lengths_are_refused(
        self, values: pl.Series, message: str
    ) -> None:
        with pytest.raises(DataError, match=rf"item feature 'price' must .*{message}"):
            fit("vector", values)

    @given(st.lists(st.lists(eighths, min_size=3, max_size=3), min_size=1, max_size=6))
    def test_equals_loops_over_numbers(self, rows: list[list[float | None]]) -> None:
        values = pl.Series(rows, dtype=pl.List(pl.Float64))
        lines = fit("vector", values).apply(values)
        for column in range(3):
            known = [row[column] for row in rows if row[column] is not None]
            floats = [float(number) for number in known if number is not None]
            mean = sum(floats) / max(1, len(floats))
            std = math.sqrt(sum((x - mean) ** 2 for x in floats) / max(1, len(floats)))
            for line, row in zip(lines.tolist(), rows, strict=True):
                number = row[column]
                expected = 0.0 if number is None else (number - mean) / (std or 1.0)
                assert line[column] == pytest.approx(expected, rel=1e-4, abs=1e-4)

    @pytest.mark.parametrize("as_lists", [False, True], ids=["arrays", "lists"])
    def test_100_000_vectors_are_read_at_once(self, as_lists: bool) -> None:
        table = np.random.default_rng(0).normal(size=(100_000, 64))
        values = pl.Series(table)
        values = values.arr.to_list() if as_lists else values
        started = process_time()
        lines = fit("vector", values).apply(values)
        assert process_time() - started < 1.5, "a loop over Python lists takes 20 times as long"
        expected = (table - table.mean(axis=0)) / table.std(axis=0)
        np.testing.assert_allclose(lines, expected, atol=1e-4)
