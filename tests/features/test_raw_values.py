"""Reading columns of any type: what each value is, alone as among others."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.features.dates import moments_of
from twotower.features.raw_values import floats_of, seconds_of, tags_of, vectors_of

NAN = float("nan")
DAY = 86_400.0


def same(left: Any, right: Any) -> bool:
    return np.array_equal(np.asarray(left), np.asarray(right), equal_nan=True)


class TestFloats:
    @pytest.mark.parametrize(
        ("values", "floats"),
        [
            (pl.Series([1, None, -3]), [1, NAN, -3]),
            (pl.Series([True, False, None]), [1, 0, NAN]),
            (pl.Series([Decimal("1.25"), None]), [1.25, NAN]),
            (pl.Series([2**70], dtype=pl.Int128), [2.0**70]),
            (pl.Series([" 1.5 ", "1e3", "x", "", "-inf", "NaN", None]),
             [1.5, 1000, NAN, NAN, -np.inf, NAN, NAN]),
            (pl.Series(["3", "x"], dtype=pl.Categorical), [3, NAN]),
            (pl.Series([date(2020, 1, 1)]), [NAN]),
            (pl.Series([timedelta(1)]), [NAN]),
            (pl.Series([[1.0]]), [NAN]),
            (pl.Series([{"a": 1.0}]), [NAN]),
            (pl.Series([b"1"]), [NAN]),
            (pl.Series([1.0], dtype=pl.Object), [NAN]),
            (pl.Series([None]), [NAN]),
            (pl.Series([], dtype=pl.Null), []),
        ],
    )  # fmt: skip
    def test_reads_numbers_and_nothing_else(self, values: pl.Series, floats: list[float]) -> None:
        read = floats_of(values)
        assert read.dtype == np.float64
        assert same(read, floats)


class TestSeconds:
    @pytest.mark.parametrize(
        ("values", "seconds"),
        [
            (pl.Series([date(1970, 1, 2), None]), [DAY, NAN]),
            (pl.Series([datetime(1970, 1, 1, 1)], dtype=pl.Datetime("ns")), [3600]),
            (pl.Series([datetime(1970, 1, 1, 1)], dtype=pl.Datetime("ms")), [3600]),
            (pl.Series([datetime(1970, 1, 1, 1, tzinfo=UTC)]), [3600]),
            (pl.Series([5, None]), [5, NAN]),
            (pl.Series(["1970-01-02", "5", " 1970-01-01T00:00:01Z ", "x", None]),
             [DAY, 5, 1, NAN, NAN]),
            (pl.Series(["1970-01-02"], dtype=pl.Categorical), [DAY]),
            (pl.Series([time(1)]), [NAN]),
            (pl.Series([timedelta(1)]), [NAN]),
            (pl.Series([[date(2020, 1, 1)]]), [NAN]),
            (pl.Series([], dtype=pl.String), []),
        ],
    )  # fmt: skip
    def test_reads_moments_and_nothing_else(self, values: pl.Series, seconds: list[float]) -> None:
        assert same(seconds_of(values), seconds)

    def test_a_zone_is_taken_into_account(self) -> None:
        berlin = pl.Series([datetime(1970, 1, 1, 1)]).dt.replace_time_zone("Europe/Berlin")
        assert seconds_of(berlin).tolist() == [0]

    def test_dates_are_read_in_each_form(self) -> None:
        texts = [
            "2020-03-04", "2020-3-4", "04-Mar-2020", "2020-03-04T00:00", "2020-03-04 00:00",
            "2020-03-04  00:00:00", "2020-03-04T00:00:00.000", "2020-03-04T00:00:00Z",
            "2020-03-04 02:00:00+02:00", "2020-03-03T22:00:00.0-0200", "4.3.2020", "2020年3月4日",
            "March 4, 2020", "4 Mar 2020", "2020/3/4", "Wed Mar 04 00:00:00 +0000 2020",
        ]  # fmt: skip
        assert moments_of(pl.Series(texts)).to_list() == [datetime(2020, 3, 4)] * len(texts)
        odd = pl.Series(["", "2020", "2020-13-01", "2020-02-30", "4/3/2020", "2020-03-04x", None])
        assert moments_of(odd).null_count() == len(odd)


class TestTags:
    @pytest.mark.parametrize(
        ("values", "separator", "tags"),
        [
            (pl.Series(["b|a", " a | a|", "", None, "|"]), "|", [["b", "a"], ["a"], [], [], []]),
            (pl.Series([["b", "a"], [], None, [None, " a", "a", ""]]), "",
             [["b", "a"], [], [], ["a"]]),
            (pl.Series([["a|b"]]), "|", [["a|b"]]),
            (pl.Series(["a|b", None]), "", [["a|b"], []]),
            (pl.Series([[1, 2], [2]]), "", [["1", "2"], ["2"]]),
            (pl.Series([[1.0, 2.5, NAN]]), "", [["1", "2.5"]]),
            (pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2)), "", [["1", "2"]]),
            (pl.Series([[]], dtype=pl.Array(pl.Int8, 0)), "", [[]]),
            (pl.Series([7, None]), "|", [["7"], []]),
            (pl.Series([True]), "", [["true"]]),
            (pl.Series(["a|b"], dtype=pl.Categorical), "|", [["a", "b"]]),
            (pl.Series([["a", "b"]], dtype=pl.List(pl.Categorical)), "", [["a", "b"]]),
            (pl.Series([[["a"]]]), "", [["['a']"]]),
            (pl.Series([None, None]), "|", [[], []]),
            (pl.Series([], dtype=pl.List(pl.Int8)), "", []),
            (pl.Series([], dtype=pl.String), "", []),
        ],
    )  # fmt: skip
    def test_reads_each_tag_once_a_line_in_order(
        self, values: pl.Series, separator: str, tags: list[list[str]]
    ) -> None:
        lines, names = tags_of(values, separator)
        read: list[list[str]] = [[] for _ in values]
        for line, name in zip(lines.tolist(), names.to_list(), strict=True):
            read[line].append(name)
        assert read == tags
        assert (np.diff(lines) >= 0).all()


class TestVectors:
    @pytest.mark.parametrize(
        ("values", "vectors"),
        [
            (pl.Series([[1.0, 2.0], None, [3.0, None]]), [[1, 2], [NAN, NAN], [3, NAN]]),
            (pl.Series([[1.0], [1.0, 2.0, 3.0], []]), [[NAN, NAN]] * 3),
            (pl.Series([[1, 2]]), [[1, 2]]),
            (pl.Series([[True, False]]), [[1, 0]]),
            (pl.Series([[Decimal("1.5"), Decimal(2)]]), [[1.5, 2]]),
            (pl.Series([["1.5", "x"]]), [[1.5, NAN]]),
            (pl.Series([[None, None]]), [[NAN, NAN]]),
            (pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)), [[1, 2], [NAN, NAN]]),
            (pl.Series([[1.0, 2.0, 3.0]], dtype=pl.Array(pl.Float32, 3)), [[NAN, NAN]]),
            (pl.Series([[[1.0, 2.0]]], dtype=pl.Array(pl.Float64, (1, 2))), [[NAN, NAN]]),
            (pl.Series([[[1.0], [2.0]]]), [[NAN, NAN]]),
            (pl.Series([[date(2020, 1, 1), date(2020, 1, 2)]]), [[NAN, NAN]]),
            (pl.Series([[b"1", b"2"]]), [[NAN, NAN]]),
            (pl.Series([{"a": 1.0, "b": 2.0}]), [[NAN, NAN]]),
            (pl.Series(["[1, 2]", None]), [[NAN, NAN]] * 2),
            (pl.Series([1.0]), [[NAN, NAN]]),
            (pl.Series([[1.0, 2.0]], dtype=pl.Object), [[NAN, NAN]]),
            (pl.Series([None]), [[NAN, NAN]]),
        ],
    )
    def test_reads_lists_of_the_width_and_nothing_else(
        self, values: pl.Series, vectors: list[list[float]]
    ) -> None:
        read = vectors_of(values, 2)
        assert read.dtype == np.float64
        assert same(read, vectors)

    def test_no_lines_and_no_width_keep_their_shape(self) -> None:
        assert vectors_of(pl.Series([], dtype=pl.List(pl.Float64)), 3).shape == (0, 3)
        assert vectors_of(pl.Series([[1.0]]), 0).shape == (1, 0)


scalars = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["1.5", "2020-01-01", "a|b"]))
lists = st.one_of(
    st.none(), st.lists(st.one_of(st.none(), st.floats(width=32), st.just(2.0)), max_size=3)
)


@given(texts=st.lists(scalars, max_size=6), numbers=st.lists(lists, max_size=6))
def test_a_value_is_read_the_same_alone_and_among_others(
    texts: list[str | None], numbers: list[list[float | None] | None]
) -> None:
    readers: list[Callable[[pl.Series], Any]] = [
        floats_of,
        seconds_of,
        lambda values: vectors_of(values, 2),
        lambda values: tags_of(values, "|")[1].to_numpy(),
    ]
    columns = [
        pl.Series(texts, dtype=pl.String),
        pl.Series(numbers, dtype=pl.List(pl.Float64)),
    ]
    for values in columns:
        for read in readers:
            alone = [read(values[row : row + 1]) for row in range(len(values))]
            together = read(values)
            joined = np.concatenate([together[:0], *alone])
            assert joined.tolist() == together.tolist() or same(joined, together)
