"""Inference of feature kinds on columns as people have them, and stated kinds that cannot be."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from twotower.errors import ConfigError
from twotower.features.schema import Feature, infer_features

ROWS = 40


def column(*values: object, dtype: Any = None) -> pl.Series:
    """The values again and again, 40 in all."""
    return pl.Series([values[row % len(values)] for row in range(ROWS)], dtype=dtype)


def feature_of(
    values: pl.Series, name: str = "column", stated: dict[str, str] | None = None
) -> Feature:
    frame = pl.DataFrame({"key": range(len(values))}).with_columns(values.rename(name))
    key, feature = infer_features(frame, "item", "key", stated or {})
    assert (key.name, key.kind) == ("key", "id")
    assert (feature.name, feature.side) == (name, "item")
    return feature


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (column(True, False), "categorical"),
        (column(True, False, None), "categorical"),
        (column(1, 2, 3, 4), "categorical"),
        (pl.Series(range(ROWS)), "shown"),
        (pl.Series(range(ROWS)).cast(pl.Float64), "number"),
        (pl.Series(range(19)), "number"),
        (column(*range(21)), "number"),
        (column(*range(20)), "categorical"),
        (column(2**64 - 1, 5, dtype=pl.UInt64), "categorical"),
        (column(1.0, 2.0), "number"),
        (column(1.0, 2.0, float("nan")), "number"),
        (column(Decimal("1.5"), Decimal("2.5")), "number"),
        (column("a", "b", dtype=pl.Categorical), "categorical"),
        (column("a", "b", dtype=pl.Enum(["a", "b"])), "categorical"),
        (column("red", "green", "blue"), "categorical"),
        (column(*(f"Toy Story {row}" for row in range(ROWS))), "text"),
        (column(*(f"玩具总动员{row}" for row in range(ROWS))), "text"),
        (column(*(f"tt{row:07}" for row in range(ROWS))), "shown"),
        (column(["a"], ["b", "c"]), "tags"),
        (column([1, 2], [3]), "tags"),
        (column([1, 2], [3, 4]), "tags"),
        (column(["a", "b"], dtype=pl.Array(pl.String, 2)), "tags"),
        (column([1.0, 2.0], [3.0, None], None), "vector"),
        (column([1, 2], dtype=pl.Array(pl.Int8, 2)), "vector"),
        (column(date(2020, 1, 1), date(2020, 1, 2)), "time"),
        (column(datetime(2020, 1, 1)).dt.replace_time_zone("UTC"), "time"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else None,
)
def test_a_kind_follows_from_what_is_in_a_column(values: pl.Series, kind: str) -> None:
    assert feature_of(values).kind == kind


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (column("same"), "constant"),
        (column(7, None), "constant"),
        (column(1.5, float("nan")), "constant"),
        (column(None), "no value"),
        (column(None, dtype=pl.String), "no value"),
        (column(float("nan"), None), "no value"),
        (column([], dtype=pl.List(pl.String)), "no value"),
        (column([], [None], None, dtype=pl.List(pl.Float64)), "no value"),
        (column([], dtype=pl.Array(pl.Float64, 0)), "no value"),
        (column([1.0, 2.0], [3.0]), "differ in length"),
        (column({"a": 1}, {"a": 2}), "no encoder"),
        (column([{"a": 1}], [{"a": 2}]), "no encoder"),
        (column([[1.0]], [[2.0]]), "no encoder"),
        (column([[1.0]], dtype=pl.Array(pl.Float64, (1, 1))), "no encoder"),
        (column(b"a", b"b"), "no encoder"),
        (column(timedelta(1), timedelta(2)), "no encoder"),
        (column(time(1), time(2)), "no encoder"),
        (column(object(), object(), dtype=pl.Object), "no encoder"),
    ],
)
def test_what_says_nothing_or_has_no_encoder_is_shown_with_the_reason(
    values: pl.Series, reason: str
) -> None:
    feature = feature_of(values)
    assert (feature.kind, feature.is_fed) == ("shown", False)
    assert reason in feature.reason


class TestOtherKeys:
    @pytest.mark.parametrize("name", ["imdb_id", "tmdbId", "ids", "OTHER_ID"])
    def test_whole_numbers_of_their_own_are_another_key(self, name: str) -> None:
        assert feature_of(pl.Series(range(ROWS)), name).kind == "shown"

    def test_a_key_that_repeats_is_a_category(self) -> None:
        assert feature_of(column(1, 2, 3), "director_id").kind == "categorical"

    def test_numbers_under_another_name_are_numbers(self) -> None:
        assert feature_of(pl.Series(range(ROWS)), "duration").kind == "number"


class TestTags:
    @pytest.mark.parametrize("separator", ["|", ";", ","])
    def test_pieces_that_recur_are_tags(self, separator: str) -> None:
        values = column("a", "a|b", "b|c", "c|a").str.replace_all("|", separator, literal=True)
        feature = feature_of(values)
        assert (feature.kind, feature.separator) == ("tags", separator)

    def test_the_bar_comes_before_the_comma(self) -> None:
        assert feature_of(column("war, old|drama", "drama|war, old")).separator == "|"

    def test_a_separator_in_few_values_makes_no_tags(self) -> None:
        assert feature_of(pl.Series(["a"] * 38 + ["a,b"] * 2)).kind == "categorical"
        assert feature_of(pl.Series(["a"] * 36 + ["a,b"] * 4)).kind == "tags"

    def test_sentences_with_commas_are_not_tags(self) -> None:
        sentences = [f"In town {row}, the {row * 7}th man, alone, waits" for row in range(ROWS)]
        assert feature_of(pl.Series(sentences)).kind == "text"

    def test_titles_with_a_comma_now_and_then_are_not_tags(self) -> None:
        titles = [f"{row}, The" if row % 20 == 0 else f"Title {row}" for row in range(ROWS)]
        assert feature_of(pl.Series(titles)).kind == "text"


class TestDates:
    @pytest.mark.parametrize(
        "dates",
        [
            ("2020-01-01", "2021-12-31"),
            ("2020-1-1", None, "2020-12-31"),
            ("01-Jan-1995", "31-Dec-1996"),
            ("2020-01-01 10:00:00", "2020-01-01 11:00"),
            ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00.25+02:00"),
        ],
    )
    def test_dates_as_text_are_times(self, dates: tuple[str | None, ...]) -> None:
        assert feature_of(column(*dates)).kind == "time"

    @pytest.mark.parametrize(
        "texts",
        [
            ("2020-01-01", "2020-13-45"),
            ("2020-01-01", "soon"),
            ("2020-01-01-a", "2020-01-02-b"),
            ("1-2-3", "4-5-6"),
        ],
    )
    def test_text_that_is_half_dates_is_not(self, texts: tuple[str, ...]) -> None:
        assert feature_of(column(*texts)).kind == "categorical"

    def test_one_misprint_in_a_hundred_is_forgiven(self) -> None:
        texts = [f"2020-01-{day % 28 + 1:02}" for day in range(199)] + ["2020-01-99"]
        assert feature_of(pl.Series(texts)).kind == "time"


class TestStated:
    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (column("1", "2.5", "x"), "number"),
            (column("1", "2", dtype=pl.Categorical), "number"),
            (column(1, 2), "time"),
            (column("2020-01-01", "x"), "time"),
            (column([1, 2], [3, 4]), "vector"),
            (column(None, dtype=pl.String), "number"),
            (column({"a": 1}), "shown"),
            (column("a", "b"), "id"),
            (column("a b", "b"), "tags"),
            (column([1.0], [2.0, 3.0]), "tags"),
        ],
    )
    def test_a_stated_kind_wins(self, values: pl.Series, kind: str) -> None:
        feature = feature_of(values, stated={"column": kind})
        assert (feature.kind, feature.reason) == (kind, "stated")

    def test_stated_tags_of_text_without_a_separator_are_words(self) -> None:
        assert feature_of(column("a b", "b"), stated={"column": "tags"}).separator == " "
        assert feature_of(column("a|b", "b"), stated={"column": "tags"}).separator == "|"
        assert feature_of(column(["a"]), stated={"column": "tags"}).separator == ""

    def test_the_key_may_be_left_out(self) -> None:
        frame = pl.DataFrame({"key": [1, 2], "x": [1.0, 2.0]})
        kinds = {f.name: f.kind for f in infer_features(frame, "item", "key", {"key": "shown"})}
        assert kinds == {"key": "shown", "x": "number"}

    @pytest.mark.parametrize(
        ("values", "kind", "message"),
        [
            (column([1.0]), "number", "one value a row to be a number, got lists"),
            (column([1.0]), "time", "one value a row to be a time, got lists"),
            (
                column([1.0], [2.0, 3.0]),
                "vector",
                r"one length to be a vector, got List\(Float64\)",
            ),
            (column("a", "b"), "vector", "one length to be a vector, got String"),
            (
                column(["a"]),
                "categorical",
                "one value a row to be categorical, got lists; use tags",
            ),
            (column({"a": 1}), "id", "one value a row to be id"),
            (column("red", "blue"), "number", "read as a number, got String .*begins with 'red'"),
            (column("red", "blue"), "time", "read as a time, got String .*begins with 'red'"),
            (column(date(2020, 1, 1)), "number", "read as a number, got Date"),
            (column({"a": 1}), "time", "read as a time, got Struct"),
        ],
    )
    def test_content_that_cannot_be_of_the_stated_kind_is_refused(
        self, values: pl.Series, kind: str, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"features\.item\.column must hold .*{message}"):
            feature_of(values, stated={"column": kind})

    def test_a_column_that_does_not_exist_is_refused_with_the_nearest(self) -> None:
        frame = pl.DataFrame({"key": [1], "genres": ["a"]})
        message = r"features\.query\.genre must name a column .* did you mean 'genres'\?"
        with pytest.raises(ConfigError, match=message):
            infer_features(frame, "query", "key", {"genre": "tags"})
        with pytest.raises(ConfigError, match="columns: key, genres"):
            infer_features(frame, "query", "key", {"zzz": "tags"})


def test_the_key_comes_first_and_the_rest_keep_their_order() -> None:
    frame = pl.DataFrame({"b": [1.0, 2.0], "key": [5, 6], "a": [1.0, 3.0]})
    assert [f.name for f in infer_features(frame, "query", "key", {})] == ["key", "b", "a"]


def test_a_table_without_lines_is_all_shown_but_the_key() -> None:
    frame = pl.DataFrame(schema={"key": pl.Int64, "x": pl.Float64, "t": pl.List(pl.String)})
    assert [f.kind for f in infer_features(frame, "item", "key", {})] == ["id", "shown", "shown"]
